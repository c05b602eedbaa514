#!/usr/bin/env python
"""Check a data set before training: decode every picture, read every caption, and name what training would skip.

DATA is a folder of pictures, with captions beside them or not, or of tar shards. The exit code is 1 after any fault.
"""

import argparse
import json
import multiprocessing
import signal
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA', help='folder of pictures, or of .tar shards')
    parser.add_argument('--caption-key', default='caption', help='field of .json captions (default: %(default)s)')
    parser.add_argument(
        '--one-caption-per-file', action='store_true', help='all lines of a text are one caption, not one each'
    )
    parser.add_argument('--resolution', type=options.numbers(1), help='also say how the pictures fit this resolution')
    parser.add_argument('--max-aspect', type=float, default=2.0, help='of the buckets (default: %(default)s)')
    parser.add_argument('--multiple', type=options.numbers(1), default=16, help='the patch size (default: %(default)s)')
    parser.add_argument('--show', type=options.numbers(0), default=20, help='faults of a kind to print (%(default)s)')
    parser.add_argument('--report', type=Path, metavar='FILE', help='write all faults and shapes as JSON')
    options.add_workers(parser, 'pictures or shards read at a time')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pixnerd_plugin.datasets.buckets import make_buckets
    from pixnerd_plugin.datasets.check import Settings, check, describe_shapes, find_jobs
    from pixnerd_plugin.datasets.image_folder import checked_folder

    if args.resolution:
        make_buckets(args.resolution, args.max_aspect, args.multiple)  # a wrong number ends it here
    root = checked_folder(args.data, 'pictures or .tar shards').rstrip('/')
    jobs, skipped = find_jobs(root)
    if not jobs:
        raise ValueError(f'no pictures and no shards in {root}{f"; not used: {skipped}" if skipped else ""}')
    settings = Settings(args.caption_key, args.one_caption_per_file)
    shapes, faults, counts = [], defaultdict(list), defaultdict(int)
    unit = 'shard' if jobs[0].path.endswith('.tar') else 'picture'
    with multiprocessing.Pool(args.workers, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
        size = 1 if unit == 'shard' else 16
        results = pool.imap(partial(check, settings=settings), jobs, chunksize=size)
        for found, problems in tqdm(results, total=len(jobs), unit=unit, disable=None):
            shapes += found
            for problem in problems:
                faults[problem.kind].append(problem.where)
                counts[problem.kind] += problem.number
    for kind, places in faults.items():
        for place in places[: args.show]:
            print(f'{kind}: {place}', file=sys.stderr)
        if len(places) > args.show:
            print(f'{kind}: {len(places) - args.show} more, all in --report FILE', file=sys.stderr)
    print(f'{root}: {len(shapes):,} whole pictures' + ''.join(f', {kind}: {n:,}' for kind, n in counts.items()))
    if skipped:
        print(f'not used: {skipped}')
    if shapes:
        sides = sorted(min(shape) for shape in shapes)
        print(f'short sides from {sides[0]} to {sides[-1]} pixels, half of them at least {sides[len(sides) // 2]}')
        if args.resolution:
            print('\n'.join(describe_shapes(shapes, args.resolution, args.max_aspect, args.multiple)))
    if args.report:
        write_report(args.report, dict(faults=faults, not_used=skipped.counts, shapes=shapes))
    return 1 if set(counts) - {'not used'} else 0


def write_report(path: Path, report: dict) -> None:
    from pixnerd_plugin.formats.atomic import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    print(f'report: {path}')


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        sys.exit(main(arguments))

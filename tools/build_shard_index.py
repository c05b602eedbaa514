#!/usr/bin/env python
"""Check tar shards (webdataset layout) and write the index that `ShardDataset` reads them through.

Pictures are not decoded, only their headers are read, unless --decode is given; then damaged ones are left out.
"""

from __future__ import annotations

import argparse
import glob
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import options


def find_shards(where: str) -> tuple[str, list[str]]:
    """Return the shards' folder and their sorted paths relative to it."""
    if os.path.isdir(where):
        root, paths = where, [str(path) for path in Path(where).rglob('*.tar')]
    else:
        paths = [path for path in glob.glob(where, recursive=True) if os.path.isfile(path)]
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ''
    if not paths:
        raise FileNotFoundError(
            f'no shards in {where!r}; expected a folder with .tar files, or a glob that matches some'
        )
    return root, sorted(os.path.relpath(path, root or '.') for path in paths)


def scan(name: str, root: str, caption_key: str, decode: bool) -> tuple[Any, Any, list[Any]]:
    """A shard's entry in the index, its pairs and its problems."""
    from pixnerd_plugin.datasets.shard_scan import scan_shard
    from pixnerd_plugin.datasets.shards import Shard

    path = os.path.join(root, name)
    pairs, problems = scan_shard(path, caption_key, decode)
    return Shard(name, os.path.getsize(path), len(pairs)), pairs, problems


def build_index(
    shards: str, out: str, caption_key: str = 'caption', workers: int = 1, decode: bool = False
) -> tuple[int, Counter[str]]:
    """Write the index; return the number of pairs and how many problems of each kind were named on stderr."""
    from tqdm import tqdm

    from pixnerd_plugin.datasets.shards import write_shard_index

    root, names = find_shards(shards)
    counts: Counter[str] = Counter()

    def scanned() -> Iterator[tuple[Any, Any]]:
        # Workers are ended by SIGTERM, which this process may handle in a way of its own, and they would inherit.
        with multiprocessing.Pool(workers, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
            results = pool.imap(partial(scan, root=root, caption_key=caption_key, decode=decode), names)
            progress = tqdm(results, total=len(names), unit='shard')
            for shard, pairs, problems in progress:
                for problem in problems:
                    progress.write(f'{shard.name}: {problem}', file=sys.stderr)
                    counts[problem.kind] += problem.number
                counts['pair'] += len(pairs)
                yield shard, pairs
        if not counts['pair']:
            raise ValueError(f'no pictures in the {len(names)} shards of {shards!r}')

    write_shard_index(out, scanned())
    return counts.pop('pair'), counts


def main(args: argparse.Namespace) -> None:
    num_pairs, problems = build_index(args.shards, args.out, args.caption_key, args.workers, args.decode)
    faults = ', '.join(f'{kind}: {count}' for kind, count in sorted(problems.items())) or 'no problems'
    print(f'{args.out}: {num_pairs} pairs; {faults}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'shards', metavar='SHARDS', help='folder with .tar shards (searched below it too), or a quoted glob'
    )
    parser.add_argument('out', metavar='OUT', help='index file to write; replaced if it exists')
    parser.add_argument('--caption-key', default='caption', help='field of .json captions (default: %(default)s)')
    parser.add_argument('--decode', action='store_true', help='decode every picture, and leave out the damaged ones')
    options.add_workers(parser, 'shards read at a time')
    return parser.parse_args()


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

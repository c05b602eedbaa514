#!/usr/bin/env python
"""Check tar shards (webdataset layout) and write the index that `ShardDataset` reads them through."""

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

import numpy as np
from tqdm import tqdm

from pixnerd_plugin.datasets.shard_scan import Problem, scan_shard
from pixnerd_plugin.datasets.shards import Shard, write_shard_index


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


def scan(name: str, root: str, caption_key: str) -> tuple[Shard, np.ndarray, list[Problem]]:
    path = os.path.join(root, name)
    pairs, problems = scan_shard(path, caption_key)
    return Shard(name, os.path.getsize(path), len(pairs)), pairs, problems


def build_index(shards: str, out: str, caption_key: str = 'caption', workers: int = 1) -> tuple[int, Counter[str]]:
    """Write the index; return the number of pairs and how many problems of each kind were named on stderr."""
    root, names = find_shards(shards)
    counts: Counter[str] = Counter()

    def scanned() -> Iterator[tuple[Shard, np.ndarray]]:
        # Workers are ended by SIGTERM, which this process may handle in a way of its own, and they would inherit.
        with multiprocessing.Pool(workers, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
            results = pool.imap(partial(scan, root=root, caption_key=caption_key), names)
            progress = tqdm(results, total=len(names), unit='shard')
            for shard, pairs, problems in progress:
                for problem in problems:
                    progress.write(f'{shard.name}: {problem.kind}: {problem.where}', file=sys.stderr)
                counts.update(problem.kind for problem in problems)
                counts['pair'] += len(pairs)
                yield shard, pairs
        if not counts['pair']:
            raise ValueError(f'no pictures in the {len(names)} shards of {shards!r}')

    write_shard_index(out, scanned())
    return counts.pop('pair'), counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'shards', metavar='SHARDS', help='folder with .tar shards (searched below it too), or a quoted glob'
    )
    parser.add_argument('out', metavar='OUT', help='index file to write; replaced if it exists')
    parser.add_argument('--caption-key', default='caption', help='field of .json captions (default: %(default)s)')
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='shards read at a time (default: all cores)'
    )
    args = parser.parse_args()
    try:
        num_pairs, problems = build_index(args.shards, args.out, args.caption_key, args.workers)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    faults = ', '.join(f'{kind}: {count}' for kind, count in sorted(problems.items())) or 'no problems'
    print(f'{args.out}: {num_pairs} pairs; {faults}')


if __name__ == '__main__':
    main()

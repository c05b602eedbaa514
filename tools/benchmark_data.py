#!/usr/bin/env python
"""Measure data loading: pictures per second per core, and memory and start-up time against the number of pairs.

Throughput is one process with one thread, JPEG to cropped tensor, files in the page cache, per second of processor
time, so that other processes do not count. Memory is that of a fresh
process that opens a synthetic index and looks up random pairs through the sampler: private (it adds up over ranks; the
tallies of damaged pictures, which a rank shares with its workers, are in it) and file-backed (one copy for all).
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

SHARDS = 1000
LOOKUPS = 20_000


def pictures(folder: str | None, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, encoded picture): files below a folder, or synthetic JPEGs of about ImageNet's size."""
    import numpy as np
    from PIL import Image, ImageFilter

    from pixnerd_plugin.datasets.image_folder import list_images

    if folder is not None:
        for path in list_images(folder)[:count]:
            yield Path(path).suffix, Path(path).read_bytes()
        return
    rng = np.random.default_rng(0)
    for _ in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        encoded = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(0.7)).save(encoded, 'JPEG', quality=90)
        yield '.jpg', encoded.getvalue()


def write_pairs(folder: Path, found: Iterator[tuple[str, bytes]]) -> int:
    """Write the pictures with captions as files and as a shard with its index; return their mean size in bytes."""
    from pixnerd_plugin.datasets.shard_scan import scan_shard
    from pixnerd_plugin.datasets.shards import Shard, write_shard_index

    (folder / 'files').mkdir()
    sizes = []
    with tarfile.open(folder / '0.tar', 'w') as tar:
        for number, (suffix, encoded) in enumerate(found):
            for name, content in ((f'{number:06d}{suffix}', encoded), (f'{number:06d}.txt', b'a caption')):
                (folder / 'files' / name).write_bytes(content)
                tar.add(folder / 'files' / name, name)
            sizes.append(len(encoded))
    if not sizes:
        raise ValueError('no pictures found below --data')
    pairs, _ = scan_shard(str(folder / '0.tar'))
    shard = Shard('0.tar', os.path.getsize(folder / '0.tar'), len(pairs))
    write_shard_index(str(folder / 'index'), [(shard, pairs)])
    return sum(sizes) // len(sizes)


def images_per_second(dataset: Any) -> float:
    from tqdm import tqdm

    from pixnerd_plugin.datasets import ResumableSampler

    visits = list(islice(ResumableSampler(dataset), len(dataset)))
    dataset[visits[0]]
    start = time.process_time()
    for visit in tqdm(visits, leave=False):
        dataset[visit]
    return len(visits) / (time.process_time() - start)


def throughput(folder: str | None, count: int) -> None:
    import torch

    from pixnerd_plugin.datasets import CaptionFolder, ShardDataset

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        size = write_pairs(Path(scratch), pictures(folder, count))
        print(f'pictures of {size / 1024:.0f} KiB on average, {"from --data" if folder else "synthetic, 500x375"}')
        print('pictures/s per core   folder   shards')
        for crop in (256, 512):
            pipeline = [dict(type='LoadRGB'), dict(type='ADMCenterCrop', size=crop), dict(type='PackInputs')]
            files = CaptionFolder(data_root=f'{scratch}/files', pipeline=pipeline)
            shards = ShardDataset(data_root=scratch, index=f'{scratch}/index', pipeline=pipeline)
            print(
                f'ADM crop to {crop}     {images_per_second(files):9.1f}{images_per_second(shards):9.1f}',
                flush=True,
            )


def open_and_look_up(root: str, count: int) -> tuple[float, float, float]:
    """Return the seconds until the first pair, and the MiB of private and of file-backed memory that were added."""
    from pixnerd_plugin.datasets import ResumableSampler, ShardDataset

    before = memory_kinds()
    start = time.perf_counter()
    dataset = ShardDataset(data_root=root, index=f'{root}/{count}')
    visits = iter(ResumableSampler(dataset, shards_per_block=16))
    dataset.describe(next(visits))
    seconds = time.perf_counter() - start
    for visit in islice(visits, LOOKUPS):
        dataset.describe(visit)
    private, backed = (after - earlier for after, earlier in zip(memory_kinds(), before, strict=True))
    return seconds, private, backed


def memory_kinds() -> tuple[float, float]:
    """MiB of this process that are its own (what it shares with its workers only, too), and file-backed."""
    from pixnerd_plugin.memory import memory

    anonymous, shared, backed = memory('RssAnon', 'RssShmem', 'RssFile')
    return anonymous + shared, backed


def measure_memory(most: int) -> None:
    import numpy as np

    from pixnerd_plugin.datasets.shards import PAIR, Shard, write_shard_index

    print('     pairs   index MiB   start s   private MiB   file-backed MiB')
    with tempfile.TemporaryDirectory() as root:
        for number in range(SHARDS):
            Path(root, f'{number}.tar').write_bytes(b'\0')
        for count in sorted({SHARDS, most // 100, most // 10, most}):
            pairs = np.zeros(count // SHARDS, PAIR)
            pairs['image_size'] = 1
            index = f'{root}/{count}'
            write_shard_index(index, ((Shard(f'{i}.tar', 1, len(pairs)), pairs) for i in range(SHARDS)))
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                seconds, private, backed = pool.apply(open_and_look_up, (root, count))
            size = os.path.getsize(index) / 2**20
            print(f'{count:10d}{size:12.1f}{seconds:10.3f}{private:14.1f}{backed:18.1f}', flush=True)


def cpu_name() -> str:
    names = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    return names[0].split(':')[1].strip() if names else platform.processor()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='?', choices=('throughput', 'memory', 'all'), default='all')
    parser.add_argument('--data', metavar='DIR', help='real pictures to load (default: synthetic JPEGs)')
    parser.add_argument('--count', type=int, default=300, help='pictures to load (default: %(default)s)')
    parser.add_argument('--pairs', type=int, default=10_000_000, help='largest synthetic index (default: %(default)s)')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch

    if not Path('/proc/self/status').exists():
        raise OSError('memory is read from /proc, which this system does not have; run it on Linux')
    print(f'{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}')
    if args.what in ('throughput', 'all'):
        throughput(args.data, args.count)
    if args.what in ('memory', 'all'):
        measure_memory(args.pairs)


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

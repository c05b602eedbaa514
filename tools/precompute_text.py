#!/usr/bin/env python
"""Encode captions ahead of training, so that training need not run the text encoder.

INPUT is a folder of captioned pictures, as the dataset CaptionFolder takes it (a .txt or .json beside each, which may
hold several captions), a folder of tar shards with --index, or one text file with a prompt per line. The folder OUT
gets safetensors shards for the transform LoadTextEmbedding.

Run it again to go on after an interruption or after adding captions: what is there already is kept. To share the work,
start it under torchrun, or once per machine with --num-shards and --shard; every process writes its own files.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', type=Path, metavar='INPUT', help='folder of captioned pictures, or file of prompts')
    parser.add_argument('out', type=Path, metavar='OUT', help='folder for the shards')
    parser.add_argument('--index', metavar='FILE', help='index of the tar shards in INPUT (tools/build_shard_index.py)')
    parser.add_argument('--model', required=True, help='folder (or cached hub id) of the text encoder, Qwen3-1.7B')
    parser.add_argument('--caption-key', default='caption', help='field of .json captions (default: %(default)s)')
    parser.add_argument(
        '--one-caption-per-file', action='store_true', help='all lines of a text are one caption, not one each'
    )
    parser.add_argument('--max-length', type=int, default=128, help='tokens per caption (default: %(default)s)')
    parser.add_argument('--dtype', default='bfloat16', help='bfloat16 or float32 (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=32, help='captions at once (default: %(default)s)')
    parser.add_argument('--shard-size', type=int, default=1024, help='captions per file (default: %(default)s)')
    parser.add_argument('--device', help='default: the GPU of this process if there is one, else the CPU')
    parser.add_argument('--num-shards', type=int, default=int(os.environ.get('WORLD_SIZE', 1)), help='processes in all')
    parser.add_argument('--shard', type=int, default=int(os.environ.get('RANK', 0)), help='which of them, from 0')
    args = parser.parse_args(words)
    if not 0 <= args.shard < args.num_shards:
        parser.error(f'--shard {args.shard} is not between 0 and {args.num_shards - 1}')
    if args.batch_size < 1 or args.shard_size < 1:
        parser.error('--batch-size and --shard-size must be at least 1')
    return args


def read_captions(source: Path, index: str | None, **settings: Any) -> Iterator[str]:
    """All captions of ``source``, in its order; an empty one for a picture whose caption is missing or unreadable."""
    from tqdm import tqdm

    from pixnerd_plugin.datasets.image_folder import CaptionFolder
    from pixnerd_plugin.datasets.shards import ShardDataset
    from pixnerd_plugin.formats.text_file import read_lines

    if source.is_dir():
        pictures: Any = (
            ShardDataset(str(source), index, **settings) if index else CaptionFolder(str(source), **settings)
        )
        for number in tqdm(range(len(pictures)), 'reading captions', unit='picture', disable=None):
            yield from pictures.captions(number)
        print(f'{source}: {pictures.num_uncaptioned} of {len(pictures)} pictures without a caption')
    else:
        yield from read_lines(source, 'prompts, one a line', limit=2**28)


def default_device() -> str:
    """The GPU of this process, as torchrun numbers it, if there is one."""
    import torch

    return f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'


def main(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
    from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore, caption_key

    encoder = Qwen3TextEncoder(args.model, args.max_length, args.dtype).to(args.device or default_device())
    settings = {'model': encoder.folder.resolve().name, 'max_length': str(args.max_length), 'dtype': args.dtype}

    # The empty caption is that of pictures without one. A caption belongs to the process that its digest names, so that
    # a repeated one is encoded once.
    reading = dict(caption_key=args.caption_key, one_caption_per_file=args.one_caption_per_file)
    captions = dict.fromkeys(['', *read_captions(args.input, args.index, **reading)])
    own = [text for text in captions if int.from_bytes(caption_key(text), 'big') % args.num_shards == args.shard]

    args.out.mkdir(parents=True, exist_ok=True)
    store = TextEmbeddingStore(args.out)
    if store.settings not in (None, settings):
        raise ValueError(f'{args.out} holds embeddings made with {store.settings}, not {settings}: choose another OUT')
    todo = [text for text in own if text not in store]

    name = f'text-{args.shard:04d}-of-{args.num_shards:04d}'
    numbers = [re.fullmatch(rf'{name}-(\d{{6}})', shard.stem) for shard in store.shards]
    number = 1 + max((int(match[1]) for match in numbers if match), default=-1)
    if todo:
        encoder.null(1)  # loads the weights, which has a progress bar of its own
    hidden = 'RANK' in os.environ and args.shard > 0
    with tqdm(total=len(own), initial=len(own) - len(todo), unit='caption', disable=hidden) as progress:
        for start in range(0, len(todo), args.shard_size):
            part = todo[start : start + args.shard_size]
            batches = []
            for index in range(0, len(part), args.batch_size):
                batches.append(encoder(part[index : index + args.batch_size]).cpu())
                progress.update(len(batches[-1]))
            store.write(f'{name}-{number:06d}', part, torch.cat(batches), settings)
            number += 1

    cut = (
        f'; {encoder.num_cut} were cut to {args.max_length} tokens: {encoder.first_cut!r}, …' if encoder.num_cut else ''
    )
    print(f'{args.out}: {len(own)} captions of this process, {len(todo)} of them new{cut}')


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

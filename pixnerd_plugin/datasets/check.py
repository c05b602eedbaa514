"""Checking a data set before training: every picture decoded, every caption read, and what would not be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .buckets import make_buckets, nearest_buckets
from .captions import CAPTION_SUFFIXES, parse_captions
from .decode import decode_image, readable_suffixes
from .faults import DamagedImage, Skipped, printable
from .image_folder import list_files, pair_captions, read_caption, skip_file
from .shard_scan import Problem, scan_shard

Shapes = list[tuple[int, int]]


class Job(NamedTuple):
    """What one call of `check` looks at: a picture with its caption file, or a shard."""

    path: str
    caption: str | None = None
    captioned: bool = False
    """Whether the picture should have a caption."""


class Settings(NamedTuple):
    """How captions are read; see `parse_captions`."""

    caption_key: str = 'caption'
    one_caption_per_file: bool = False


def find_jobs(root: str) -> tuple[list[Job], Skipped]:
    """What to check below a folder: its shards if it has any, else its pictures; and what is left out.

    Captions are expected if there is a caption file beside any picture.
    """
    skipped = Skipped()
    shards: list[str] = []
    pictures: list[str] = []
    captions: list[str] = []
    rest: list[str] = []
    for path in list_files(root, skipped):
        suffix = os.path.splitext(path)[1].lower()
        known = [(('.tar',), shards), (readable_suffixes(), pictures), (CAPTION_SUFFIXES, captions)]
        next((found for suffixes, found in known if suffix in suffixes), rest).append(path)
    if shards:
        return [Job(path) for path in shards], skipped  # what lies beside them is not read either
    for path in rest:
        skip_file(path, skipped)
    pairs = pair_captions(pictures, captions)
    used = set(pairs.values())
    for caption in captions:
        if caption not in used:
            skipped.add('caption without a picture, or beside another caption', caption)
    captioned = any(caption is not None for caption in pairs.values())
    return [Job(path, caption, captioned) for path, caption in pairs.items()], skipped


def check(job: Job, settings: Settings) -> tuple[Shapes, list[Problem]]:
    """The shapes (height, width) of the whole pictures of a job, and its problems."""
    if job.path.endswith('.tar'):
        pairs, found = scan_shard(job.path, settings.caption_key, decode=True)
        shapes: Shapes = list(zip(pairs['height'].tolist(), pairs['width'].tolist(), strict=True))
        return shapes, [problem._replace(where=f'{printable(job.path)}: {problem.where}') for problem in found]
    shapes = []
    problems: list[Problem] = []
    try:
        picture = decode_image(job.path, exif_orientation=True)
        shapes.append((picture.height, picture.width))
    except DamagedImage as fault:
        problems.append(Problem('damaged picture', f'{printable(job.path)}: {fault}'))
    except OSError as fault:
        problems.append(Problem('unreadable file', f'{printable(job.path)}: {fault.strerror}'))
    if job.captioned:
        try:
            parse_captions(*read_caption(job.caption), *settings)
        except (OSError, ValueError) as fault:
            kind = 'missing caption' if job.caption is None else 'unreadable caption'
            problems.append(Problem(kind, f'{printable(job.path)}: {fault}'))
    return shapes, problems


def describe_shapes(shapes: Sequence[tuple[int, int]], resolution: int, max_aspect: float, multiple: int) -> list[str]:
    """Lines on how pictures of these shapes (height, width) fit the buckets of `BucketBatchSampler`."""
    known = np.array(shapes)
    buckets = make_buckets(resolution, max_aspect, multiple)
    numbers = nearest_buckets(known, buckets)
    counts = np.bincount(numbers, minlength=len(buckets)).tolist()
    targets = np.array(buckets)[numbers]
    small = int((known < targets).any(axis=1).sum())
    elongated = int((known.max(axis=1) > max_aspect * known.min(axis=1)).sum())
    each = ', '.join(f'{h}x{w}: {count:,}' for (h, w), count in zip(buckets, counts, strict=True) if count)
    return [
        f'buckets of resolution {resolution} (height x width): {each}',
        f'{small:,} pictures are smaller than their bucket and would be enlarged',
        f'{elongated:,} pictures are more elongated than {max_aspect:g} and would be cropped',
    ]

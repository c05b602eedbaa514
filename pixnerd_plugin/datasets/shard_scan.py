"""Reading a tar shard's table of contents: where its pictures and captions lie, and what is wrong with it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .captions import CAPTION_SUFFIXES, parse_captions
from .image_folder import PICTURE_SUFFIXES
from .shards import PAIR


class Problem(NamedTuple):
    """Something wrong in a shard: its kind (what is counted), and the member or place."""

    kind: str
    where: str


def scan_shard(path: str, caption_key: str = 'caption') -> tuple[np.ndarray, list[Problem]]:
    """Pair the pictures and captions of a shard: members of one name up to the first dot (webdataset's rule).

    Nothing is extracted. Members that are broken, repeated, linked or named outside the shard are left out and listed;
    a picture whose caption is missing or unreadable stays, without a caption.

    Args:
        path: a tar file, not compressed.
        caption_key: field of `.json` captions.

    Returns:
        Pairs (N,) of dtype `PAIR` in the order of the shard, and the problems.
    """
    problems: list[Problem] = []
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _regular_members(path, problems):
        folder, name = os.path.split(member.name)
        stem, _, suffix = name.partition('.')
        kind = _kind('.' + suffix.lower())
        if kind is None:
            continue
        pair = members.setdefault(f'{folder}/{stem}', {})
        if kind in pair:
            problems.append(Problem('repeated name', member.name))
        else:
            pair[kind] = member
    rows = []
    with open(path, 'rb') as file:
        for key, pair in members.items():
            if 'picture' not in pair:
                problems.append(Problem('caption without a picture', key))
                continue
            picture = pair['picture']
            caption_kind, caption = 0, picture
            fault = 'no .txt or .json'
            for number, suffix in enumerate(CAPTION_SUFFIXES, start=1):
                if suffix in pair and caption_kind == 0:
                    file.seek(pair[suffix].offset_data)
                    try:
                        parse_captions(file.read(pair[suffix].size), suffix, caption_key)
                    except (ValueError, RecursionError) as error:
                        fault = str(error)
                    else:
                        caption_kind, caption = number, pair[suffix]
            if caption_kind == 0:
                readable = not any(suffix in pair for suffix in CAPTION_SUFFIXES)
                problems.append(
                    Problem('missing caption' if readable else 'unreadable caption', f'{picture.name}: {fault}')
                )
            caption_size = caption.size if caption_kind else 0
            rows.append((0, picture.size, caption_size, caption_kind, picture.offset_data, caption.offset_data))
    return np.array(rows, dtype=PAIR), problems


def _kind(suffix: str) -> str | None:
    if suffix in CAPTION_SUFFIXES:
        return suffix
    return 'picture' if suffix in PICTURE_SUFFIXES else None


def _regular_members(path: str, problems: list[Problem]) -> Iterator[tarfile.TarInfo]:
    """Yield the whole, regular, safely named members, adding what else there is to `problems`."""
    end = os.path.getsize(path)
    expected = 0
    # ignore_zeros makes tarfile go on behind a broken header, at the next one whose checksum is right. It says nothing
    # of it: the gap shows.
    with open(path, 'rb') as file:
        try:
            with tarfile.open(fileobj=file, mode='r:', ignore_zeros=True) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    next_header = tar.offset
                    if not _zeros(path, expected, member.offset):
                        problems.append(Problem('broken member', f'header at byte {expected}'))
                    expected = next_header
                    if member.isdir():
                        continue
                    if not member.isreg() or member.name.startswith('/') or '..' in member.name.split('/'):
                        problems.append(
                            Problem('ignored member', f'{member.name}: a link, or a name outside the shard')
                        )
                    elif member.offset_data + member.size > end:
                        problems.append(Problem('broken member', f'{member.name}: cut short'))
                    else:
                        yield member
        except tarfile.TarError as error:
            if expected <= end:
                problems.append(Problem('broken member', f'at byte {expected}: {error}'))
            return
    if not _zeros(path, expected, end):
        problems.append(Problem('broken member', f'header at byte {expected}'))


def _zeros(path: str, start: int, stop: int) -> bool:
    """Tell whether the bytes in [start, stop) are all zero, as between and after archives they should be."""
    if start >= stop:
        return True
    with open(path, 'rb') as file:
        file.seek(start)
        while chunk := file.read(min(stop - file.tell(), 1 << 20)):
            if chunk.strip(b'\0'):
                return False
    return True

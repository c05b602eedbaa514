"""Scanning a tar shard: where its pictures and captions are, and its faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixnerd_plugin.formats.plain_file import require_file

from .captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, parse_captions
from .decode import MAX_IMAGE_BYTES
from .image_folder import IMAGE_SUFFIXES
from .shards import PAIR
from .tar_file import Member, read_members


class Problem(NamedTuple):
    """A fault in a shard: its kind, by which faults are counted, and the member or place."""

    kind: str
    where: str


def scan_shard(path: str, caption_key: str = 'caption') -> tuple[np.ndarray, list[Problem]]:
    """Pair the pictures and captions of a shard: members whose names agree up to the first dot (webdataset's rule).

    Nothing is extracted. Members that are broken, repeated, links, or named outside the shard are skipped and listed as
    problems. A picture with a missing or unreadable caption is kept without a caption.

    Args:
        path: an uncompressed tar file.
        caption_key: field of `.json` captions.

    Returns:
        Pairs (N,) of dtype `PAIR` in the order of the shard, and the problems.
    """
    require_file(Path(path), 'shard')
    problems: list[Problem] = []
    members: dict[str, dict[str, Member]] = {}
    for member in _regular_members(path, problems):
        folder, name = os.path.split(member.name)
        stem, _, suffix = name.partition('.')
        kind = _kind('.' + suffix.lower())
        if kind is None:
            continue
        pair = members.setdefault(f'{folder}/{stem}', {})
        if kind in pair:
            problems.append(Problem('repeated name', _printable(member.name)))
        elif kind == 'picture' and not 0 < member.size <= MAX_IMAGE_BYTES:
            problems.append(Problem('broken member', f'{_printable(member.name)}: a picture of {member.size} bytes'))
        else:
            pair[kind] = member
    rows = []
    with open(path, 'rb') as file:
        for key, pair in members.items():
            if 'picture' not in pair:
                problems.append(Problem('caption without a picture', _printable(key)))
                continue
            picture = pair['picture']
            caption_kind, caption = 0, picture
            fault = 'no .txt or .json'
            for number, suffix in enumerate(CAPTION_SUFFIXES, start=1):
                if suffix in pair and caption_kind == 0:
                    file.seek(pair[suffix].offset)
                    encoded = file.read(min(pair[suffix].size, MAX_CAPTION_BYTES + 1))
                    try:
                        parse_captions(encoded, suffix, caption_key)
                    except ValueError as error:
                        fault = str(error)
                    else:
                        caption_kind, caption = number, pair[suffix]
            if caption_kind == 0:
                readable = not any(suffix in pair for suffix in CAPTION_SUFFIXES)
                kind = 'missing caption' if readable else 'unreadable caption'
                problems.append(Problem(kind, f'{_printable(picture.name)}: {fault}'))
            caption_size = caption.size if caption_kind else 0
            rows.append((0, picture.size, caption_size, caption_kind, picture.offset, caption.offset))
    return np.array(rows, dtype=PAIR), problems


def _kind(suffix: str) -> str | None:
    if suffix in CAPTION_SUFFIXES:
        return suffix
    return 'picture' if suffix in IMAGE_SUFFIXES else None


def _regular_members(path: str, problems: list[Problem]) -> Iterator[Member]:
    """Yield complete regular members with safe names, and add the others to `problems`."""
    for member in read_members(path):
        if not member.problem:
            yield member
        elif member.problem != 'a folder':
            is_broken = not member.name or member.problem == 'cut short'
            where = f'{_printable(member.name)}: {member.problem}' if member.name else member.problem
            problems.append(Problem('broken member' if is_broken else 'ignored member', where))


def _printable(name: str) -> str:
    """A name made safe for a line of a log or a terminal."""
    return name if name.isprintable() else ascii(name)

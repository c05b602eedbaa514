"""Scanning a tar shard: where its pictures and captions are, and its faults."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pixnerd_plugin.formats.plain_file import require_file

from .captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, parse_captions
from .decode import MAX_IMAGE_BYTES, decode_image, encoded_shape, missing_decoder, readable_suffixes
from .faults import DamagedImage, printable
from .shards import MAX_SIDE, SCANNED
from .tar_file import Member, read_members


class Problem(NamedTuple):
    """A fault in a shard: its kind, by which faults are counted, the member or place, and the number of members."""

    kind: str
    where: str
    number: int = 1

    def __str__(self) -> str:
        return f'{self.kind}: {self.where}{f" ({self.number} of them)" if self.number > 1 else ""}'


def scan_shard(path: str, caption_key: str = 'caption', decode: bool = False) -> tuple[np.ndarray, list[Problem]]:
    """Pair the pictures and captions of a shard, and read the pictures' shapes.

    Members belong together if their names agree up to the first dot (webdataset's rule), or, where what follows it is
    no suffix (`my.photo.v1.jpg`), up to the last. Nothing is extracted. Members that are broken, repeated, links, named
    outside the shard, or neither picture nor caption are skipped and listed as problems. A picture with a missing or
    unreadable caption is kept without a caption.

    Args:
        path: an uncompressed tar file.
        caption_key: field of `.json` captions.
        decode: also decode every picture, and leave out the damaged ones.

    Returns:
        Pairs (N,) of dtype `SCANNED` in the order of the shard, and the problems.
    """
    require_file(Path(path), 'shard')
    problems: list[Problem] = []
    pairs = _members(path, problems)
    rows = []
    with open(path, 'rb') as file:
        for key, pair in pairs.items():
            if 'picture' not in pair:
                problems.append(Problem('caption without a picture', printable(key)))
                continue
            shape, fault = _examine(file, pair['picture'], decode)
            if fault:
                problems.append(Problem('damaged picture', f'{printable(pair["picture"].name)}: {fault}'))
                continue
            caption_kind, caption = _find_caption(file, pair, caption_key, problems)
            picture, size = pair['picture'], caption.size if caption_kind else 0
            rows.append((0, picture.size, size, caption_kind, picture.offset, caption.offset, *shape))
    return np.array(rows, dtype=SCANNED), problems


def _members(path: str, problems: list[Problem]) -> dict[str, dict[str, Member]]:
    """The members of each key by their kind: 'picture', or a suffix of captions."""
    known: list[tuple[str, str, Member]] = []
    others: list[tuple[str, str, str, Member]] = []
    left: Counter[str] = Counter()
    for member in _regular_members(path, problems):
        folder, name = os.path.split(member.name)
        stem, _, rest = name.partition('.')
        longer, suffix = os.path.splitext(name)
        if kind := _kind(f'.{rest.lower()}'):
            known.append((f'{folder}/{stem}', kind, member))
        elif kind := _kind(suffix.lower()):
            others.append((f'{folder}/{stem}', f'{folder}/{longer}', kind, member))
        else:
            needed = missing_decoder(suffix.lower())
            left[f'{printable(suffix.lower()) or "no suffix"}{f" (needs {needed})" if needed else ""}'] += 1
    first = {key for key, kind, _ in known if kind == 'picture'}
    for short, key, kind, member in others:
        if short in first:
            left[f'.{printable(os.path.basename(member.name).partition(".")[2])}, a further field of a picture'] += 1
        else:
            known.append((key, kind, member))
    problems += [Problem('not used', what, count) for what, count in left.items()]
    pairs: dict[str, dict[str, Member]] = {}
    for key, kind, member in sorted(known, key=lambda found: found[2].offset):
        pair = pairs.setdefault(key, {})
        if kind in pair:
            problems.append(Problem('repeated name', printable(member.name)))
        elif kind == 'picture' and not 0 < member.size <= MAX_IMAGE_BYTES:
            problems.append(Problem('broken member', f'{printable(member.name)}: a picture of {member.size} bytes'))
        else:
            pair[kind] = member
    _join_capitals(pairs)
    return pairs


def _join_capitals(pairs: dict[str, dict[str, Member]]) -> None:
    """Give captions without a picture to the picture without a caption whose name differs in capitals only."""
    alone = {key.casefold(): key for key, pair in pairs.items() if 'picture' not in pair}
    for key, pair in list(pairs.items()):
        if pair.keys() == {'picture'} and key.casefold() in alone:
            pair.update(pairs.pop(alone.pop(key.casefold())))


def _examine(file: IO[bytes], picture: Member, decode: bool) -> tuple[tuple[int, int], str]:
    """The shape of a picture as the index keeps it, and what is wrong with it, if it is to be decoded."""

    def read(size: int) -> bytes:
        file.seek(picture.offset)
        return file.read(size)

    try:
        if decode:
            decode_image(read(picture.size))
        height, width = encoded_shape(read, picture.size)
    except DamagedImage as fault:
        return (0, 0), str(fault) if decode else ''
    scale = max(1, max(height, width) / MAX_SIDE)
    return (max(1, int(height / scale)), max(1, int(width / scale))), ''


def _find_caption(
    file: IO[bytes], pair: dict[str, Member], caption_key: str, problems: list[Problem]
) -> tuple[int, Member]:
    """The first readable caption: its kind in the index, and the member. Without one, kind 0 and the picture."""
    picture = pair['picture']
    fault = ''
    for number, suffix in enumerate(CAPTION_SUFFIXES, start=1):
        if suffix in pair:
            file.seek(pair[suffix].offset)
            encoded = file.read(min(pair[suffix].size, MAX_CAPTION_BYTES + 1))
            try:
                parse_captions(encoded, suffix, caption_key)
            except ValueError as error:
                fault = str(error)
            else:
                return number, pair[suffix]
    kind = 'unreadable caption' if fault else 'missing caption'
    problems.append(Problem(kind, f'{printable(picture.name)}: {fault or "no " + " or ".join(CAPTION_SUFFIXES)}'))
    return 0, picture


def _kind(suffix: str) -> str | None:
    if suffix in CAPTION_SUFFIXES:
        return suffix
    return 'picture' if suffix in readable_suffixes() else None


def _regular_members(path: str, problems: list[Problem]) -> Iterator[Member]:
    """Yield complete regular members with safe names, and add the others to `problems`."""
    for member in read_members(path):
        if not member.problem:
            yield member
        elif member.problem != 'a folder':
            is_broken = not member.name or member.problem == 'cut short'
            where = f'{printable(member.name)}: {member.problem}' if member.name else member.problem
            problems.append(Problem('broken member' if is_broken else 'ignored member', where))

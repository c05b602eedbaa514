"""Texts and tables in files: of a bounded size, in UTF-8, and what their schema says."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .plain_file import require_file
from .schema import Rule, check_table, shown

# Read as JSON, a text takes up to 30 times its size.
MAX_TEXT = 4 * 2**20


def read_text(path: str | os.PathLike[str], what: str, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file of at most ``limit`` bytes, without a byte order mark.

    Raises:
        FileNotFoundError, ValueError: it is absent, no plain file, too long, or not UTF-8.
    """
    path = Path(path)
    require_file(path, what)
    with open(path, 'rb') as file:
        encoded = file.read(limit + 1)
    if len(encoded) > limit:
        raise ValueError(f'{path}: it has more than {limit} bytes, and is to be a {what}')
    try:
        return encoded.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: byte {error.start} is not UTF-8; save the file as UTF-8') from None


def read_lines(path: str | os.PathLike[str], what: str, limit: int = 2 * MAX_TEXT) -> list[str]:
    """The lines of a text file that are not blank, without the space around them.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_text`, or there is none.
    """
    lines = [line.strip() for line in read_text(path, f'file of {what}', limit).split('\n')]
    if not any(lines):
        raise ValueError(f'{path}: it has no {what}')
    return [line for line in lines if line]


def parse_table(
    what: str, text: str, rules: Mapping[str, Rule], required: Iterable[str] = (), limit: int = MAX_TEXT
) -> dict[str, Any]:
    """A JSON object whose entries keep ``rules``, with all that are ``required``, each once.

    Raises:
        ValueError: if it is none; the message names ``what`` and the entry.
    """
    if len(text) > limit:
        raise ValueError(f'{what} has {len(text)} characters, more than {limit}')
    try:
        table = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = 'nested too deeply' if isinstance(error, RecursionError) else ' '.join(str(error).split())[:200]
        raise ValueError(f'{what} is not JSON ({reason})') from None
    check_table(what, table, rules)
    for name in required:
        if name not in table:
            raise ValueError(f'{what} has no {name}')
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f'{shown(counts.most_common(1)[0][0])} is there twice')
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f'{constant} is no number of JSON')

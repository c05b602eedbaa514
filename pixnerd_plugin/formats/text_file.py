"""Texts and JSON from files: of a bounded size, and from regular files alone, which pipes and devices are not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .schema import Rule, check_table, naming, shown

# Read as JSON, a text takes up to 30 times its size.
MAX_TEXT = 4 * 2**20


def require_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return ``path``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder, or a pipe or device, which may have no end.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{what} {path} does not exist')
    if not path.is_file():
        raise ValueError(f'{what} {path} is no file but a {"folder" if path.is_dir() else "pipe or a device"}')
    return path


def read_text(path: str | os.PathLike[str], what: str, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file of at most ``limit`` bytes, without a byte order mark.

    Raises:
        FileNotFoundError, ValueError: it is absent, no regular file, too long, or not UTF-8.
    """
    path = require_file(path, what)
    with open(path, 'rb') as file:
        encoded = file.read(limit + 1)
    if len(encoded) > limit:
        raise ValueError(f'{what} {path} has more than {limit} bytes')
    try:
        return encoded.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{what} {path}: byte {error.start} is not UTF-8; save it as UTF-8') from None


def parse_json(text: str, limit: int = MAX_TEXT) -> Any:
    """What a JSON text says, as the standard has it: no ``NaN``, and no name twice in a table.

    Raises:
        ValueError: if it is not JSON, or too long or too deep to be read.
    """
    if len(text) > limit:
        raise ValueError(f'it has {len(text)} characters of JSON, more than {limit}')
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError('its JSON is nested too deeply') from None
    except ValueError as error:
        raise ValueError(f'not readable as JSON: {error}') from None


def parse_table(
    what: str, text: str, rules: Mapping[str, Rule], required: Iterable[str] = (), limit: int = MAX_TEXT
) -> dict[str, Any]:
    """A JSON object whose entries keep ``rules``, with all that are ``required``.

    Raises:
        ValueError: if it is none; the message names the entry.
    """
    with naming(what):
        table = parse_json(text, limit)
    check_table(what, table, rules)
    for name in required:
        if name not in table:
            raise ValueError(f'{what} has no {name}')
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f'{shown(twice)} is there twice')
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f'{constant} is no number of JSON')

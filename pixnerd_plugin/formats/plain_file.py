"""Files that are what they seem: plain ones, of a size that is theirs, every byte of which was written."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

# What was never written reads as zeros. No download or copy leaves a hole of that size by chance.
MAX_HOLE = 16 * 2**20
_MOST_HOLES = 1000
_SEEKING = threading.Lock()


def require_file(path: Path, what: str) -> None:
    """Check that ``path`` is a plain file: a pipe would wait for ever, and a device never ends.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is anything else.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise FileNotFoundError(f'{path}: no such {what}') from None
    if not stat.S_ISREG(mode):
        raise ValueError(f'{path}: not a plain file, and a {what} is')


def read_small(path: Path, limit: int) -> bytes:
    """All of a file that has at most ``limit`` bytes; errors as in :func:`require_file`, and for a larger one."""
    require_file(path, 'file')
    with open(path, 'rb') as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f'{path}: it has more than {limit} bytes')
    return content


def read_at(file: int, offset: int, size: int) -> bytes:
    """``os.pread``, for any number of threads; on Windows, which lacks it, they read one after the other."""
    if hasattr(os, 'pread'):
        return os.pread(file, size, offset)
    with _SEEKING:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)


def read_json(path: Path, limit: int = 2 * 2**20) -> Any:
    """The content of a JSON file; errors as in :func:`read_small`, and ValueError if it is not JSON."""
    content = read_small(path, limit)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f'{path} is {error}') from None


def parse_json(text: str | bytes) -> Any:
    """``text`` as JSON.

    Raises:
        ValueError: if it is not, or nests too deeply; one line.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = 'nested too deeply' if isinstance(error, RecursionError) else ' '.join(str(error).split())[:200]
        raise ValueError(f'not JSON ({reason})') from None


def require_written(path: Path) -> None:
    """Check that a file has no large holes, as an unfinished download or a file made to fill memory has.

    Raises:
        ValueError: with the place and size of the hole.
    """
    if not hasattr(os, 'SEEK_HOLE'):
        return
    with open(path, 'rb', buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        start = 0
        for _ in range(_MOST_HOLES):
            hole = _seek(file, start, os.SEEK_HOLE, size)
            start = _seek(file, hole, os.SEEK_DATA, size)
            if start - hole > MAX_HOLE:
                raise ValueError(f'{start - hole} bytes at {hole} were never written; is the download complete?')
            if start >= size:
                return
    raise ValueError(f'it has more than {_MOST_HOLES} holes that were never written; copy it with cp --sparse=never')


def _seek(file: Any, start: int, whence: int, end: int) -> int:
    try:
        return file.seek(start, whence)
    # Beyond the last data, or on a file system that does not tell.
    except OSError:
        return end

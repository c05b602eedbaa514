"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = '.tmp-'


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; when the block ends well, it becomes ``path``.

    The temporary name keeps the suffix, for writers that choose the format by it. A block that raises leaves neither
    file behind; a process killed inside it leaves only the temporary one, which ``remove_leftovers`` deletes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{PREFIX}{os.getpid()}-{path.name}')
    try:
        yield temporary
        # Without the flush to disk, a power cut could leave the new name on an empty file.
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what killed processes left half-written in ``folder``."""
    for leftover in Path(folder).glob(f'{PREFIX}*'):
        leftover.unlink(missing_ok=True)

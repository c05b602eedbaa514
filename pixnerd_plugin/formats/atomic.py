"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = '.tmp-'

# The disk, the user's share of it, or the largest file allowed; the system names no file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; when the block ends well, it becomes ``path``.

    The temporary name keeps the suffix, for writers that choose the format by it. A block that raises leaves neither
    file behind; a process killed inside it leaves only the temporary one, which ``remove_leftovers`` deletes.

    Raises:
        OSError: naming ``path``, if the disk or what the user may fill of it is full.
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
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            raise OSError(error.errno, f'{os.strerror(error.errno)}, while writing', str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what killed processes left half-written in ``folder``."""
    for leftover in Path(folder).glob(f'{PREFIX}*'):
        leftover.unlink(missing_ok=True)


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Delete what killed processes of this machine left half-written of ``path``; those that run keep theirs."""
    path = Path(path)
    for leftover in path.parent.glob(f'{PREFIX}*-{glob.escape(path.name)}'):
        process = leftover.name.removeprefix(PREFIX).split('-')[0]
        if process.isdecimal() and len(process) < 10 and not _runs(int(process)):
            leftover.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    # On Windows the question would end the process.
    if os.name == 'nt':
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

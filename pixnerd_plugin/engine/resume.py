"""Which checkpoint a run goes on from: the last one that is whole."""

from __future__ import annotations

import re
import sys
import zipfile
import zlib
from pathlib import Path


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the last checkpoint written in ``work_dir``; if it is damaged, the one before; None if there is none.

    Raises:
        ValueError: if there are some, but all of them are damaged.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    # Only the name in it: the folder may have been moved since. Later ones are of another run in the same folder.
    last = _step(pointer.read_text().strip()) if pointer.is_file() else -1
    candidates = [path for path in Path(work_dir).glob('*.pth') if _step(path.name) >= 0]
    if last >= 0:
        candidates = [path for path in candidates if _step(path.name) <= last]
    candidates.sort(key=lambda path: _step(path.name), reverse=True)
    for path in candidates:
        try:
            return require_checkpoint(path)
        except ValueError as error:
            print(f'CHECKPOINT DAMAGED: {error}', file=sys.stderr)
    if candidates:
        raise ValueError(
            f'all {len(candidates)} checkpoints in {work_dir} are damaged; restore one, or train in another folder'
        )
    return None


def require_checkpoint(path: str | Path) -> Path:
    """Return ``path`` if it is a checkpoint that is whole to the last bit: every part of it is read and summed.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is cut short, altered, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    # The directory of a zip archive is at its end, so a file cut short has none.
    if not zipfile.is_zipfile(path):
        raise ValueError(f'checkpoint {path} is cut short or no checkpoint; take the one before it')
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the CRC-32 of each tensor with the one it was stored with
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, zlib.error) as error:
        raise ValueError(f'checkpoint {path} is damaged ({error}); take the one before it') from None
    if damaged:
        raise ValueError(f'checkpoint {path} is damaged: the checksum of {damaged} is wrong; take the one before it')
    return path


def _step(name: str) -> int:
    match = re.search(r'(?:iter|epoch)_(\d+)\.pth$', name)
    return int(match[1]) if match else -1

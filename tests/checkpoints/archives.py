"""Torch files taken apart and put together again, with true checksums around what was changed."""

import zipfile
from collections.abc import Callable
from pathlib import Path

Records = list[tuple[str, bytes]]


def read_records(path: Path) -> Records:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def write_records(path: Path, records: Records, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in records:
            info = zipfile.ZipInfo(name)
            change(info)
            archive.writestr(info, data)
    return path


def rewrite_pickle(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the pickle of a torch file in place."""
    records = read_records(path)
    return write_records(path, [(name, change(data) if name.endswith('data.pkl') else data) for name, data in records])

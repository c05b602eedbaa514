"""Reading arrays from untrusted npz and npy files: every claim of a header is checked before it is used.

numpy's own reader allocates whatever memory a header claims, and zipfile whatever a directory claims.
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.schema import check_table, integer, one_of, sequence, shown, text
from pixnerd_plugin.formats.zip_archive import check_directory_size

# ADM's files have at most 5 arrays, and a header has about 120 bytes.
MAX_DIRECTORY, MAX_ENTRIES, MAX_HEADER = 2**16, 100, 2**12

# Any array may inflate to MAX_INFLATED bytes, and beyond that to MAX_RATIO times its compressed size.
MAX_RATIO, MAX_INFLATED = 20, 2**27

_MAGIC = b'\x93NUMPY'
_HEADER = dict(descr=text(20), fortran_order=one_of(True, False), shape=sequence(integer(0, 2**40), 0, 4))

# The allowed flags of an entry: how it was compressed, and how its name is encoded.
_FLAGS = 0x2 | 0x4 | 0x8 | 0x800

# What zipfile raises for a damaged archive, besides OSError when it seeks before the start.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError, OverflowError)


class Header(NamedTuple):
    """Type and shape of an array, and the length of its header in bytes."""

    dtype: str
    shape: tuple[int, ...]
    fortran_order: bool
    length: int

    @property
    def nbytes(self) -> int:
        """Size of header and array in bytes."""
        return self.length + math.prod(self.shape) * int(self.dtype[2:])


def read_header(stream: IO[bytes]) -> Header:
    """Read the header of an npy file with an array of numbers.

    Raises:
        ValueError: if it is not one.
    """
    start = stream.read(8)
    size = {1: 2, 2: 4, 3: 4}.get(start[6]) if len(start) == 8 and start[:6] == _MAGIC else None
    encoded = stream.read(size) if size else b''
    if size is None or len(encoded) < size:
        raise ValueError('it does not begin as an array of numpy does')
    length = int.from_bytes(encoded, 'little')
    if length > MAX_HEADER:
        raise ValueError(f'its header claims {length} bytes, more than {MAX_HEADER}')
    try:
        table = ast.literal_eval(stream.read(length).decode('latin1').strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError('its header is not readable') from None
    check_table('its header', table, _HEADER)
    if absent := [name for name in _HEADER if name not in table]:
        raise ValueError(f'its header has no {absent[0]}')
    dtype = table['descr']
    if dtype[:1] not in '<|>=' or dtype[1:2] not in 'biufc' or dtype[2:] not in ('1', '2', '4', '8', '16'):
        raise ValueError(f'it is of {dtype!r}, and an array of numbers is needed')
    try:
        np.dtype(dtype)
    except TypeError:
        raise ValueError(f'it is of {dtype!r}, which is no type of numbers') from None
    return Header(dtype, tuple(table['shape']), table['fortran_order'], 8 + size + length)


class Npz:
    """An open npz, made by :func:`open_npz`; ``names`` lists its arrays."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path = path
        self._archive = archive
        self._entries = {entry.filename.removesuffix('.npy'): entry for entry in archive.infolist()}
        if len(self._entries) < len(archive.infolist()):
            raise ValueError(f'{path} has two arrays of one name')
        for name in self._entries:
            if not name.isprintable() or len(name) > 100:
                raise ValueError(f'{path} has an array named {shown(name)}, which is no name')

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], Header]]:
        """Open an array at the end of its header; gives the stream and the header.

        Raises:
            ValueError: if the array is damaged, which may show while it is read, or its size is not that of the header.
        """
        entry = self._entries[name]
        where = f'{name} in {self.path}'
        if entry.flag_bits & ~_FLAGS or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f'{where} is encrypted or compressed by another method than deflate (flags '
                f'{entry.flag_bits:#x}, method {entry.compress_type}); numpy.savez writes it plainly'
            )
        if entry.file_size > MAX_INFLATED + MAX_RATIO * entry.compress_size:
            raise ValueError(
                f'{where} has {entry.compress_size} bytes and claims to inflate to {entry.file_size}; write it '
                'uncompressed, with numpy.savez'
            )
        try:
            stream = self._archive.open(entry)
        except (*_DAMAGED, OSError) as error:
            raise ValueError(f'{where} is damaged: {_line(error)}; make it again') from None
        with stream:
            try:
                header = read_header(stream)
                if header.nbytes != entry.file_size:
                    raise ValueError(f'its header is that of {header.nbytes} bytes, and it has {entry.file_size}')
            except _DAMAGED as error:
                raise ValueError(f'{where} is damaged: {_line(error)}; make it again') from None
            try:
                yield stream, header
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ValueError(f'{where} is damaged: {_line(error)}; make it again') from None

    def header(self, name: str) -> Header:
        with self.open(name) as (_, header):
            return header

    def read(self, name: str) -> np.ndarray:
        """Read the whole array; check its :meth:`header` first."""
        with self.open(name) as (stream, header):
            values = np.frombuffer(stream.read(), header.dtype)
            return values.reshape(header.shape, order='F' if header.fortran_order else 'C')


@contextmanager
def open_npz(path: str | Path) -> Iterator[Npz]:
    """Open an npz as the zip archive it is.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is cut short or not an npz.
    """
    path = Path(path)
    require_file(path, 'npz')
    with open(path, 'rb') as file:
        try:
            check_directory_size(file, MAX_DIRECTORY)
            archive = zipfile.ZipFile(file)
        except (*_DAMAGED, OSError):
            # The directory of a zip archive is at its end, so a file cut short has none.
            raise ValueError(f'{path} is half-written or no npz; make it again') from None
        with archive:
            if len(archive.infolist()) > MAX_ENTRIES:
                raise ValueError(f'{path} has {len(archive.infolist())} arrays, more than {MAX_ENTRIES}')
            yield Npz(path, archive)


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__

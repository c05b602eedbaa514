"""Files as ``torch.save`` writes them: with a copy of at most one tensor in memory, and complete or absent."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .atomic import atomic_path
from .lazy import LazyTensor
from .safetensors_file import tensor_bytes

_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}

# Torch maps records from such offsets.
ALIGNMENT = 64


class _Storage(NamedTuple):
    key: str
    tensor: LazyTensor


class _Pickler(pickle.Pickler):
    """Pickles lazy tensors as torch does tensors, and collects their storages."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: dict[int, _Storage] = {}

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, LazyTensor):
            return NotImplemented
        stride: list[int] = []
        step = 1
        for size in reversed(value.shape):
            stride.insert(0, step)
            step *= size
        # A tensor that appears twice is stored once.
        storage = self.storages.setdefault(id(value), _Storage(str(len(self.storages)), value))
        return torch._utils._rebuild_tensor_v2, (storage, 0, value.shape, tuple(stride), False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        return ('storage', _STORAGES[value.tensor.dtype], value.key, 'cpu', value.tensor.numel)


def save_torch(path: Path, content: Any) -> None:
    """``torch.save``, straight into a file that appears under its name when it is whole and on the disk.

    Raises:
        OSError: naming ``path``, if the disk is full or fails.
    """
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's writer, finishing a file that it could not write, complains of a wrong position.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def write_torch(path: Path, content: Any, progress: Callable[[int], Any] = lambda nbytes: None) -> None:
    """Write plain containers of :class:`~.lazy.LazyTensor`; ``progress`` is told the bytes written."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        _write(archive, 'data.pkl', stream.getbuffer())
        _write(archive, 'byteorder', memoryview(b'little'))
        for storage in pickler.storages.values():
            data = tensor_bytes(storage.tensor)
            _write(archive, f'data/{storage.key}', data)
            progress(len(data))
        _write(archive, 'version', memoryview(b'3\n'))


def _write(archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    record = zipfile.ZipInfo(f'archive/{name}')
    large = len(data) >= 2**31
    # The header, its optional fields and a padding field of 4 bytes at least.
    start = archive.start_dir + 30 + len(record.filename) + (20 if large else 0) + 4
    padding = -start % ALIGNMENT
    record.extra = struct.pack('<2H', 0x4642, padding) + bytes(padding)
    with archive.open(record, 'w', force_zip64=large) as file:
        file.write(data)

"""PyTorch checkpoints, read without trusting them: no code of theirs runs, no tensor is read before it is asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .lazy import LazyTensor, Span, is_countable
from .pickle_reader import Inert, read_pickle
from .zip_archive import Archive, open_archive

# That of the XL network with its optimiser's state has about 0.3 MB.
MAX_PICKLE = 16 * 2**20

_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64),
)
_BY_NAME = {str(dtype): dtype for dtype in _DTYPES}
_STORAGES = {
    'torch.DoubleStorage': torch.float64,
    'torch.FloatStorage': torch.float32,
    'torch.HalfStorage': torch.float16,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.LongStorage': torch.int64,
    'torch.IntStorage': torch.int32,
    'torch.ShortStorage': torch.int16,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
    'torch.storage.UntypedStorage': torch.uint8,
}


class _Storage(NamedTuple):
    record: Span
    dtype: torch.dtype | None


def open_torch(path: Path) -> Any:
    """Return what ``torch.save`` was given: plain values, tensors as :class:`~.lazy.LazyTensor`, and for all else an
    :class:`~.pickle_reader.Inert`.

    Raises:
        ValueError: if the file is damaged, or its tensors do not fit its data.
    """
    try:
        archive = open_archive(path)
        if 'byteorder' in archive.records and archive.read('byteorder', 16) != b'little':
            raise ValueError('it was written on a big-endian machine')
        return _Content(archive).read()
    except ValueError as error:
        raise ValueError(f'{path}: not a PyTorch checkpoint that can be read: {error}') from None


class _Content:
    """The pickle of an archive, and the storages that it uses."""

    def __init__(self, archive: Archive):
        self.archive = archive
        self.used: set[str] = set()

    def read(self) -> Any:
        makers = {
            'collections.OrderedDict': _ordered_dict,
            'torch._utils._rebuild_tensor_v2': lambda arguments: _rebuild(arguments),
            'torch._utils._rebuild_tensor_v3': lambda arguments: _rebuild(arguments, arguments[6]),
            'torch._utils._rebuild_parameter': lambda arguments: arguments[0],
            'torch._utils._rebuild_parameter_with_state': lambda arguments: arguments[0],
        }
        content = read_pickle(self.archive.read('data.pkl', MAX_PICKLE), self.storage, makers)
        records = {name for name in self.archive.records if name.startswith('data/')}
        if records != self.used:
            raise ValueError(f'it has {len(records)} data records, and its tensors use {len(self.used)}')
        return content

    def storage(self, identity: Any) -> _Storage:
        """What a persistent id stands for."""
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != 'storage':
            raise ValueError('its pickle has a persistent id that is no storage')
        kind, key, _, numel = identity[1:]
        record = self.archive.records.get(f'data/{key}') if type(key) is str else None
        if record is None or type(kind) is not Inert or type(numel) is not int:
            raise ValueError('its pickle has a storage that the archive has no record of')
        dtype = _STORAGES.get(kind.name)
        if dtype is not None and numel * dtype.itemsize != record.size:
            raise ValueError(f'its tensors and data records differ in size (data/{key} has {record.size} bytes)')
        self.used.add(f'data/{key}')
        return _Storage(record, dtype)


def _ordered_dict(arguments: tuple) -> Any:
    # Items follow by other operations; Python 2 gave them as arguments.
    return Inert('collections.OrderedDict') if arguments else {}


def _rebuild(arguments: tuple, dtype: Any = None) -> LazyTensor | Inert:
    """What torch makes of a storage, an offset, a shape, strides and more that does not change the values."""
    if len(arguments) < 4:
        raise ValueError('its pickle has a tensor without storage, shape and strides')
    storage, offset, shape, stride = arguments[:4]
    if type(storage) is not _Storage or not type(shape) is type(stride) is tuple or len(shape) != len(stride):
        raise ValueError('its pickle has a tensor without storage, shape and strides')
    # Before each size is looked at: a pickle may refer to one long shape often.
    if len(shape) > 8:
        return Inert('a tensor of a dtype or shape that no weights have')
    if not all(type(size) is int and 0 <= size < 2**63 for size in (offset, *shape, *stride)):
        raise ValueError('its pickle has a tensor of impossible sizes')
    known = storage.dtype if dtype is None else _BY_NAME.get(dtype.name)
    if known is None or not is_countable(shape):
        return Inert('a tensor of a dtype or shape that no weights have')
    if 0 in shape:
        return LazyTensor(known, shape, lambda: torch.empty(shape, dtype=known))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if (last + 1) * known.itemsize > storage.record.size:
        raise ValueError(
            f'its tensors and data records differ in size (a tensor of shape {shape} ends outside its own)'
        )
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return Inert(f'a tensor of shape {shape} that is not contiguous')
        expected *= size
    path, start, whole, crc = storage.record
    size = math.prod(shape) * known.itemsize
    # A checksum is of the whole record.
    span = Span(path, start + offset * known.itemsize, size, crc if size == whole else None)
    return span.tensor(known, shape)

"""PyTorch checkpoints, read without trusting them: no code of theirs runs, no tensor is read before it is asked for."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .lazy import LazyTensor, Span
from .zip_archive import Archive, open_archive

# All that a state dict needs; torch's own weights_only allows more.
ALLOWED_GLOBALS = frozenset(
    {
        'collections.OrderedDict',
        'torch._utils._rebuild_tensor_v2',
        'torch._utils._rebuild_parameter',
        *(f'torch.{kind}Storage' for kind in ('Float', 'Double', 'Half', 'BFloat16', 'Byte', 'Char', 'Short')),
        *(f'torch.{kind}Storage' for kind in ('Int', 'Long', 'Bool')),
    }
)

# That of the XL network with its optimiser's state has about 0.3 MB.
MAX_PICKLE = 16 * 2**20


def open_torch(path: Path) -> Any:
    """Return what ``torch.save`` was given, its tensors as :class:`~.lazy.LazyTensor`.

    Raises:
        ValueError: if the file is damaged, or its pickle names anything but tensors in plain containers; the message
            names it.
    """
    try:
        archive = open_archive(path)
        _refuse_code(archive.read('data.pkl', MAX_PICKLE))
        if 'byteorder' in archive.records and archive.read('byteorder', 16) != b'little':
            raise ValueError('it was written on a big-endian machine')
    except ValueError as error:
        raise ValueError(f'{path}: not a PyTorch checkpoint that can be read: {error}') from None
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        return _replace(content, _locate(archive, content), {})
    # What a malformed pickle makes of torch's unpickler, a machine with a stack, is any error there is.
    except Exception as error:
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f'{path}: not a checkpoint that loads safely with weights_only: {reason}') from None


def _refuse_code(pickle: bytes) -> None:
    strings = ['', '']
    for operation, argument, _ in pickletools.genops(pickle):
        wanted = None
        if operation.name in ('GLOBAL', 'INST'):
            wanted = str(argument).replace(' ', '.', 1)
        elif operation.name == 'STACK_GLOBAL':
            wanted = '.'.join(strings)
        elif operation.name.startswith('EXT'):
            wanted = f'extension {argument}'
        elif isinstance(argument, str):
            strings = [strings[1], argument]
        if wanted is not None and wanted not in ALLOWED_GLOBALS:
            raise ValueError(f'its pickle wants {wanted!r}, and nothing but tensors in plain containers is allowed')


def _locate(archive: Archive, content: Any) -> dict[int, Span]:
    """The record of each storage, by the address torch mapped it to.

    Torch maps the file as a whole, so addresses differ from offsets by one constant. That every storage is exactly one
    record, and every record a storage, is what rules out lying sizes.
    """
    storages = {(s.data_ptr(), s.nbytes()) for s in map(Tensor.untyped_storage, _tensors(content)) if s.nbytes()}
    spans = [span for name, span in archive.records.items() if name.startswith('data/') and span.size]
    found, expected = sorted(storages), sorted((span.offset, span.size) for span in spans)
    if not found or len(found) != len(expected):
        raise ValueError(f'it has {len(expected)} data records, and its tensors use {len(found)}')
    base = found[0][0] - expected[0][0]
    if any((address - base, size) != span for (address, size), span in zip(found, expected, strict=True)):
        raise ValueError('its tensors and data records differ in size')
    return {base + span.offset: span for span in spans}


def _tensors(content: Any) -> Iterator[Tensor]:
    todo, seen = [content], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list | tuple | set):
            todo.extend(value)


def _replace(value: Any, spans: dict[int, Span], done: dict[int, Any]) -> Any:
    """``value`` with lazy tensors; ``done`` holds what was replaced, since a pickle may refer to a thing often."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        done[id(value)] = _lazy(value, spans)
    elif isinstance(value, dict):
        done[id(value)] = {key: _replace(item, spans, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        done[id(value)] = type(value)(_replace(item, spans, done) for item in value)
    else:
        return value
    return done[id(value)]


def _lazy(tensor: Tensor, spans: dict[int, Span]) -> LazyTensor:
    if not tensor.is_contiguous():
        raise ValueError(f'a tensor of shape {tuple(tensor.shape)} is not contiguous')
    dtype, shape = tensor.dtype, tuple(tensor.shape)
    if not tensor.numel():
        return LazyTensor(dtype, shape, lambda: torch.empty(shape, dtype=dtype))
    record = spans[tensor.untyped_storage().data_ptr()]
    start, size = int(tensor.storage_offset()) * dtype.itemsize, tensor.numel() * dtype.itemsize
    whole = size == record.size
    return Span(record.path, record.offset + start, size, record.crc if whole else None).tensor(dtype, shape)

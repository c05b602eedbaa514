"""Safetensors files: read without trusting their header, written one tensor at a time."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .atomic import atomic_path
from .lazy import LazyTensor, Span, is_countable
from .plain_file import require_written
from .schema import shown

DTYPES = {
    'BOOL': torch.bool,
    'U8': torch.uint8,
    'I8': torch.int8,
    'I16': torch.int16,
    'I32': torch.int32,
    'I64': torch.int64,
    'U16': torch.uint16,
    'U32': torch.uint32,
    'U64': torch.uint64,
    'F8_E4M3': torch.float8_e4m3fn,
    'F8_E5M2': torch.float8_e5m2,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'F32': torch.float32,
    'F64': torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The format allows 100 MB. One of real weights has some hundred bytes a tensor, and trainers' notes of a megabyte or
# two; Python takes twenty times a header's size to hold it.
MAX_HEADER = 4 * 2**20
MAX_TENSORS = 20_000


def open_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors and the metadata of a file, having read its header only.

    Raises:
        ValueError: if the header is not that of a whole file, with the reason in one line.
    """
    try:
        return _open(path)
    except (ValueError, RecursionError, struct.error) as error:
        reason = 'nested too deeply' if isinstance(error, RecursionError) else ' '.join(str(error).split())
        raise ValueError(f'{path}: not a readable safetensors file: {reason[:300]}') from None


def _open(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    require_written(path)
    size = path.stat().st_size
    with open(path, 'rb') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f'its header claims {length} bytes, of a file of {size}; is it complete?')
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError('its header is not a table')
    metadata = header.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError('its metadata is not a table of texts')

    if len(header) > MAX_TENSORS:
        raise ValueError(f'it has {len(header)} tensors, and at most {MAX_TENSORS} are read')
    start, tensors, spans = 8 + length, {}, []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _parse(name, entry)
        spans.append((begin, end, name))
        tensors[name] = Span(path, start + begin, end - begin).tensor(dtype, shape)
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ValueError(f'{name!r} begins at byte {begin}, where {position} is due')
        position = end
    if start + position != size:
        raise ValueError(f'it has {size} bytes, and its header describes {start + position}; is it complete?')
    return tensors, metadata


def _parse(name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    if len(name) > 1000 or not name.isprintable():
        raise ValueError(f'a tensor is named {shown(name)}, and a name of printable characters is due')
    if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
        raise ValueError(f'{name!r} is not described by dtype, shape and data_offsets')
    dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f'{name!r} has dtype {shown(dtype)}; known are {", ".join(DTYPES)}')
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f'{name!r} has a shape or data_offsets that are not lists of sizes')
    if len(shape) > 8 or len(offsets) != 2:
        raise ValueError(f'{name!r} has {len(shape)} dimensions and {len(offsets)} offsets')
    if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise ValueError(f'{name!r} is {shape} of {dtype}, and has {offsets[1] - offsets[0]} bytes')
    if not is_countable(shape):
        raise ValueError(f'{name!r} is {shape}, which no tensor can be')
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f'{shown(counts.most_common(1)[0][0])} appears twice')
    return result


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> None:
    """Write ``tensors`` to ``path``, each read when its turn comes; ``progress`` is told the bytes written."""
    header: dict[str, Any] = {'__metadata__': {'format': 'pt', **metadata}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        header[name] = dict(dtype=_NAMES[tensor.dtype], shape=list(tensor.shape), data_offsets=[position, end])
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor_bytes(tensor))
            progress(tensor.nbytes)


def tensor_bytes(tensor: LazyTensor) -> memoryview:
    """The bytes of a tensor, as every format here stores them."""
    value = tensor.read().contiguous()
    if value.dtype != tensor.dtype or tuple(value.shape) != tensor.shape:
        raise ValueError(f'expected {tensor.shape} of {tensor.dtype}, read {tuple(value.shape)} of {value.dtype}')
    return value.reshape(-1).view(torch.uint8).numpy().data

"""Tensors that are still in their file: known by dtype and shape, read one at a time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class LazyTensor(NamedTuple):
    """A tensor that :attr:`read` makes anew at every call; nothing is kept. :attr:`span` is where it lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    span: Span | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """A tensor in memory, as one of these."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


Tensors = dict[str, LazyTensor]
"""Tensors of a file by name."""


class Span(NamedTuple):
    """Bytes of a file, with their checksum where the format has one."""

    path: Path
    offset: int
    size: int
    crc: int | None = None

    def read(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The bytes as a tensor in memory of its own.

        Raises:
            ValueError: if the file ends before, or the bytes are not those that were written.
        """
        # Not mapped: mapped pages count as this process's memory, and a file cut short under a mapping kills it.
        # On the CPU even where a network is built under ``torch.device('meta')``.
        buffer = torch.empty(self.size, dtype=torch.uint8, device='cpu')
        view = buffer.numpy().data
        with open(self.path, 'rb', buffering=0) as file:
            file.seek(self.offset)
            done = 0
            while done < self.size:
                count = file.readinto(view[done:])
                if not count:
                    raise ValueError(f'{self.path}: cut short: {self.size - done} bytes are missing; is it complete?')
                done += count
        if self.crc is not None and zlib.crc32(view) != self.crc:
            raise ValueError(f'{self.path}: damaged: the bytes at {self.offset} do not fit their checksum')
        return buffer.view(dtype).reshape(shape)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(dtype, shape, lambda: self.read(dtype, shape), self)


def is_countable(shape: Sequence[int]) -> bool:
    """Whether torch can make a tensor of this shape: an empty one may be too large along its other dimensions."""
    return math.prod(size for size in shape if size) < 2**63


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, with memory for a small part of them."""
    # float8 has no isfinite of its own.
    parts = tensor.reshape(-1).split(2**22)
    return all(bool((part.float() if part.dtype.itemsize == 1 else part).isfinite().all()) for part in parts)


def require_finite(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``.

    Raises:
        ValueError: if it has NaN or infinite values.
    """
    if not is_finite(tensor):
        raise ValueError(f'{name} holds NaN or infinite values; the training diverged or the file is damaged')
    return tensor

"""Damaged pictures: the exceptions for one and for too many, and a tally of them."""

from __future__ import annotations

import torch


class DamagedImage(ValueError):
    """A picture cannot be read. Pipelines raise this, and the dataset skips the picture."""


class TooManyDamaged(RuntimeError):
    """More pictures are damaged than `max_damaged` allows."""

    def __init__(self, message: str):
        # torch rebuilds an exception from a worker with the whole traceback as its message. The user needs what
        # follows the last class name.
        super().__init__(message.rsplit(f'{type(self).__name__}: ', 1)[-1].strip())


class Tally:
    """A set of indices in [0, size), shared by all workers of a loader and the main process, at one bit per index.

    Workers write without a lock. In the worst case, two that add neighbouring indices at the same instant lose one.
    """

    def __init__(self, size: int):
        self._bits = torch.zeros(-(-size // 8), dtype=torch.uint8).share_memory_()
        self._count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def add(self, index: int) -> bool:
        """Add `index`; return whether it was new."""
        byte, bit = index // 8, 1 << index % 8
        value = int(self._bits[byte])
        if value & bit:
            return False
        self._bits[byte] = value | bit
        self._count += 1
        return True

    def __len__(self) -> int:
        return int(self._count)

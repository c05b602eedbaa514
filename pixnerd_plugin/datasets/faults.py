"""Faults of data: what one damaged picture raises, what too many raise, and how they are counted."""

from __future__ import annotations

import torch


class DamagedPicture(ValueError):
    """A picture that cannot be read. A pipeline raises it; the dataset skips the picture."""


class TooManyDamaged(RuntimeError):
    """More pictures are damaged than `max_damaged` allows."""

    def __init__(self, message: str):
        # From a worker, torch rebuilds the exception with the whole traceback as its message; the line after the
        # last class name is what the user needs.
        super().__init__(message.rsplit(f'{type(self).__name__}: ', 1)[-1].strip())


class Tally:
    """A set of indices in [0, size), shared by all workers of a loader and visible in the main process.

    It costs a bit per index. Workers write without a lock: at worst, two adding neighbours in one instant lose one.
    """

    def __init__(self, size: int):
        self._bits = torch.zeros(-(-size // 8), dtype=torch.uint8).share_memory_()
        self._count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def add(self, index: int) -> bool:
        """Add `index`; return whether it is new."""
        byte, bit = index // 8, 1 << index % 8
        value = int(self._bits[byte])
        if value & bit:
            return False
        self._bits[byte] = value | bit
        self._count += 1
        return True

    def __len__(self) -> int:
        return int(self._count)

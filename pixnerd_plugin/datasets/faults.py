"""What cannot be used: the exceptions for a damaged picture and for too many, and tallies of what is skipped."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

_BYTES_APART = 4096
_ONES = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


class DamagedImage(ValueError):
    """A picture cannot be read. Pipelines raise this, and the dataset skips the picture."""


class TooManyDamaged(RuntimeError):
    """More pictures are damaged than `max_damaged` allows."""

    def __init__(self, message: str):
        # torch rebuilds an exception from a worker with the whole traceback as its message. The user needs what
        # follows the last class name.
        super().__init__(message.rsplit(f'{type(self).__name__}: ', 1)[-1].strip())


def printable(name: str) -> str:
    """A name made safe for a line of a log or a terminal."""
    return name if name.isprintable() else ascii(name)


class Skipped:
    """What a data set leaves out: how many of each kind, and the first of each, for one line in the log."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        self._first.setdefault(kind, printable(where))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return ', '.join(
            f'{printable(kind)}: {count} ({self._first[kind]}{", …" if count > 1 else ""})'
            for kind, count in sorted(self.counts.items())
        )


class Tally:
    """A set of indices in [0, size), shared by all workers of a loader and the main process, at one bit per index.

    Workers write without a lock: if two change one byte at the same instant, one change is lost. Up to 4096 indices
    have a byte each, so that cannot happen. Of more, those that share a byte are 4096 or more apart: it is rare, and
    then one of thousands is missing.
    """

    def __init__(self, size: int):
        self._bytes = max(-(-size // 8), min(size, _BYTES_APART))
        self._bits = torch.zeros(self._bytes, dtype=torch.uint8).share_memory_()

    def add(self, index: int) -> bool:
        """Add `index`; return whether it was new."""
        byte, bit = index % self._bytes, 1 << index // self._bytes
        value = int(self._bits[byte])
        if value & bit:
            return False
        self._bits[byte] = value | bit
        return True

    def __len__(self) -> int:
        return int(_ONES[self._bits.numpy()].sum())

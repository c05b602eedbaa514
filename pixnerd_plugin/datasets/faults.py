"""What cannot be used: the exceptions for a damaged picture and for too many, and tallies of what is skipped."""

from __future__ import annotations

from collections import Counter

import torch


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

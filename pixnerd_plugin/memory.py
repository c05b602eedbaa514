"""The memory of this process: how much the system counts, and how the C library keeps it."""

from __future__ import annotations

import ctypes
from pathlib import Path


def memory(*fields: str) -> list[float] | None:
    """Memory of this process in MiB, by Linux's names (VmRSS, VmHWM, RssAnon, ...); None on other systems."""
    status = Path('/proc/self/status')
    if not status.exists():
        return None
    counted = dict(line.split(':', 1) for line in status.read_text().splitlines())
    return [int(counted[name].split()[0]) / 1024 for name in fields]


def available_memory() -> float | None:
    """Memory of this machine that programs can still have, in MiB; None on systems other than Linux."""
    system = Path('/proc/meminfo')
    if not system.exists():
        return None
    counted = dict(line.split(':', 1) for line in system.read_text().splitlines())
    return int(counted['MemAvailable'].split()[0]) / 1024


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, because the next step needs it again; glibc only.

    By default glibc returns large blocks to the kernel, which fills them with zeros each time they are requested again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    map_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    # An older glibc refuses the first; the second alone would make it map every block.
    if mallopt(map_threshold, 2**30):
        mallopt(trim_threshold, 2**31 - 1)

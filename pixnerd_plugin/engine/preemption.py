"""SIGTERM from a scheduler: remembered when it comes, agreed on by all ranks, acted on between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process

EXIT_REQUEUE = 75
"""Exit code (EX_TEMPFAIL) of a run that was asked to stop and has saved: start it again with --resume."""

_asked, _stopping, _busy = threading.Event(), threading.Event(), threading.Event()
_watching = False
_steps = 0


def save_seconds() -> float:
    """Seconds between SIGTERM and SIGKILL, as tools/dist_train.sh and slurm_train.sh have them (SAVE_SECONDS).

    A process in which no step ends for a fifth of it is waiting for a dead one, and exits.

    Raises:
        ValueError: if SAVE_SECONDS is no number of seconds.
    """
    text = os.environ.get('SAVE_SECONDS', '600')
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise ValueError(f'SAVE_SECONDS must be a number of seconds above 0, got {text!r}')
    return seconds


def watch() -> None:
    """From now on, SIGTERM does not end this process: it is remembered, and the training loop stops between steps."""
    global _watching
    if threading.current_thread() is not threading.main_thread():
        return
    patience = save_seconds() / 5
    signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    if not _watching:
        _watching = True
        # Python runs no handler while the main thread is inside a collective; this pipe is written to even then.
        read, write = os.pipe()
        if hasattr(os, 'set_blocking'):  # not on Windows before Python 3.12
            os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_end_if_stuck, args=(read, patience), daemon=True).start()


def step_ended() -> None:
    """Tell the watchdog that training is not stuck."""
    global _steps
    _steps += 1
    _busy.clear()


@contextmanager
def busy() -> Iterator[None]:
    """Long work between two steps, such as a save: the watchdog lets it end, however long it takes.

    Rank 0 does such work while the others wait for it in their next step; for them it lasts until that step has ended.
    """
    _busy.set()
    try:
        yield
    finally:
        if is_main_process():
            _busy.clear()


def _end_if_stuck(read: int, patience: float) -> None:
    while os.read(read, 1) != bytes([signal.SIGTERM]):
        pass
    watchdog = Watchdog(patience, time.monotonic())
    while not _stopping.wait(min(1.0, patience / 5)):
        if watchdog.is_stuck(time.monotonic()):
            os.write(2, f'No step has ended for {patience:g} s after SIGTERM: this process exits unsaved\n'.encode())
            os._exit(128 + signal.SIGTERM)


class Watchdog:
    """Whether this process has neither ended a step nor been busy for ``patience`` seconds, from ``now`` on."""

    def __init__(self, patience: float, now: float):
        self.patience, self.since, self.seen = patience, now, _steps

    def is_stuck(self, now: float) -> bool:
        if _busy.is_set() or self.seen != _steps:
            self.since, self.seen = now, _steps
        return now - self.since > self.patience


class Preemption:
    """Whether any rank was asked to stop; all ranks get the same answer at the same call.

    Within the block, all ranks must call :meth:`agreed` equally often. Each call sends this rank's state over gloo in
    the background and returns the result of the previous call, so neither host nor device waits for a round trip.
    """

    def __enter__(self) -> Preemption:
        watch()
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend='gloo') if distributed else None
        self._pending: tuple[torch.Tensor, Any] | None = None
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        if self._pending and error is None:
            self._pending[1].wait()
        _asked.clear()

    def agreed(self) -> bool:
        stop = _asked.is_set()
        if self._group is not None:
            previous, news = self._pending, torch.tensor(int(stop))
            self._pending = news, dist.all_reduce(news, dist.ReduceOp.MAX, group=self._group, async_op=True)
            stop = False
            if previous:
                outcome, work = previous
                work.wait()
                stop = bool(outcome)
        if stop:
            _stopping.set()
        return stop

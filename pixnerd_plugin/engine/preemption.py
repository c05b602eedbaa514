"""SIGTERM from a scheduler: remembered when it comes, agreed on by all ranks, acted on between two steps."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

EXIT_REQUEUE = 75
"""Exit code (EX_TEMPFAIL) of a run that was asked to stop and has saved: start it again with --resume."""

STUCK_SECONDS = 120
"""A process that does not finish a step within this time after SIGTERM is waiting for a dead one, and exits."""

_asked, _stopping = threading.Event(), threading.Event()
_watching = False


def watch() -> None:
    """From now on, SIGTERM does not end this process: it is remembered, and the training loop stops between steps."""
    global _watching
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    if not _watching:
        _watching = True
        # Python runs no handler while the main thread is inside a collective; this pipe is written to even then.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_end_if_stuck, args=(read,), daemon=True).start()


def _end_if_stuck(read: int) -> None:
    while os.read(read, 1) != bytes([signal.SIGTERM]):
        pass
    if not _stopping.wait(STUCK_SECONDS):
        os.write(2, b'No step has ended since SIGTERM: this process exits without saving\n')
        os._exit(128 + signal.SIGTERM)


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

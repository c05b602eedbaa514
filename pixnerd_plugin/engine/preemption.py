"""Being asked to stop by a scheduler: noticed at once, agreed on by all ranks, acted on between two steps."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

EXIT_REQUEUE = 75
"""Exit code of a run that was asked to stop and has saved its state: start it again with --resume (EX_TEMPFAIL)."""

STUCK_SECONDS = 120
"""A process that has not come to the end of a step so long after SIGTERM waits for a dead one, and ends at once."""

_asked, _stopping = threading.Event(), threading.Event()
_watching = False


def watch() -> None:
    """From now on SIGTERM does not end this process but is remembered until the training loop stops between steps."""
    global _watching
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    if not _watching:
        _watching = True
        # Python runs a handler only when the main thread is not inside a collective; this pipe hears of it even then.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_end_if_stuck, args=(read,), daemon=True).start()


def _end_if_stuck(read: int) -> None:
    while os.read(read, 1) != bytes([signal.SIGTERM]):
        pass
    if not _stopping.wait(STUCK_SECONDS):
        os.write(2, b'SIGTERM came, and no step has ended since: this process ends without saving\n')
        os._exit(128 + signal.SIGTERM)


class Preemption:
    """Whether any rank was asked to stop; every rank gets the same answer at the same call.

    Within the block, :meth:`agreed` is called by all ranks equally often. Each call sends this rank's news over gloo in
    the background and returns the outcome of the call before, so neither host nor device waits for a round trip.
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

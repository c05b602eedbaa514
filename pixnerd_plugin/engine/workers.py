"""The processes that load data: how they start, what they end with, and how their death is noticed."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from functools import partial
from pickle import UnpicklingError
from typing import Any

BROKEN = (RuntimeError, OSError, EOFError, UnpicklingError)
"""What the next batch may raise when a worker died while it was sending one."""

_SECONDS_TO_DIE = 2.0
_PRELOADED = ['torch', 'pixnerd_plugin.datasets']


def start_server(config: Any) -> None:
    """Start the process that data workers will be forked from, so that it imports while the model is built.

    A training process has threads (of torch, NCCL, the logs). A fork of it may hold a lock that no thread of its own
    will release: Python warns of that from 3.12 on, and from 3.14 on starts processes as this does by default
    (``env_cfg.mp_cfg.mp_start_method='forkserver'``). The server has no threads.
    """
    method = ((config.get('env_cfg') or {}).get('mp_cfg') or {}).get('mp_start_method')
    if method == 'forkserver' and os.name != 'nt' and config.train_dataloader.get('num_workers'):
        from multiprocessing import forkserver

        multiprocessing.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()


def prepare_workers(loader: Any) -> None:
    """Have the workers of a loader start from a server that has imported what they need, and end with this process."""
    if loader.num_workers > 0:
        if os.name != 'nt':
            multiprocessing.set_forkserver_preload(_PRELOADED)
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _start_worker(initialise: Any, number: int) -> None:
    # torch ends a worker whose parent is gone; but the parent is the server, which lives as long as a worker does.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialise is not None:
        initialise(number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def worker_died(batches: Any, error: BaseException) -> bool:
    """Whether ``error``, raised by the iterator ``batches`` of a loader, is of a worker that died.

    torch says so itself, unless the worker broke off while it sent a batch: then reading the rest raises whatever the
    operating system or pickle make of it, perhaps before the system has counted the worker as dead.
    """
    if 'in DataLoader worker process' in str(error):  # an error of the dataset, handed on by a worker that lives
        return False
    if str(error).startswith('DataLoader worker'):
        return True
    workers, end = getattr(batches, '_workers', []), time.monotonic() + _SECONDS_TO_DIE
    while workers and time.monotonic() < end:
        if not all(worker.is_alive() for worker in workers):
            return True
        time.sleep(0.02)
    return False

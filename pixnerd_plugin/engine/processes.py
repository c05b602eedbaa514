"""The process group of a distributed run: joining it, leaving it, and exiting immediately on a failure."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from mmengine.dist import init_dist
from torch.distributed import PrefixStore, rendezvous

from pixnerd_plugin.cli import one_line_errors


def set_up_processes(config: Any, launcher: str) -> None:
    """Join the process group that ``launcher`` started: on GPUs, or with gloo if there is no CUDA.

    Raises:
        ValueError: if the launcher's variables are missing, or there are more processes than GPUs.
    """
    config.launcher = launcher
    if launcher == 'none':
        return
    if launcher == 'pytorch' and 'LOCAL_RANK' not in os.environ:
        raise ValueError('--launcher pytorch is for processes started by torchrun; use tools/dist_train.sh CONFIG GPUS')
    settings = dict(config.get('env_cfg', {}).get('dist_cfg', {}))
    if torch.cuda.is_available():
        processes, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
        if processes > gpus:
            raise ValueError(
                f'{processes} processes cannot share the {gpus} GPUs of this machine; start at most {gpus}'
            )
        # As mmengine's Runner does, but earlier: the ranks must agree on a checkpoint to resume.
        init_dist(launcher, **settings, **(_rendezvous() if launcher == 'pytorch' else {}))
        return
    if launcher != 'pytorch':
        raise ValueError(f'--launcher {launcher} needs GPUs, and there are none; on CPUs use tools/dist_train.sh')
    # mmengine would choose a CUDA device here and fail on a CPU build, unless the group exists already.
    timeout = timedelta(seconds=settings.get('timeout', 600))
    torch.distributed.init_process_group('gloo', timeout=timeout, **_rendezvous())
    wrapper = config.get('model_wrapper_cfg') or dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _rendezvous() -> dict[str, Any]:
    """Where torchrun's processes find each other, as arguments of ``init_process_group``.

    torchrun keeps one store over restarts. Without a prefix for each start, restarted processes would find the
    addresses of dead ones.
    """
    store, rank, world_size = next(rendezvous('env://'))
    start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return dict(store=PrefixStore(f'start_{start}', store), rank=rank, world_size=world_size)


def tear_down_processes() -> None:
    """Leave the process group, if there is one, at the end of a successful run.

    A process that exits without leaving it may be aborted, and the whole run then counts as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def fail_at_once() -> Iterator[None]:
    """Report errors as :func:`~pixnerd_plugin.cli.one_line_errors` does; in a process group, exit immediately.

    Python's normal exit waits for the group's threads, and these wait for the other ranks. If one rank hangs, a rank
    that fails because of it would hang too, and the launcher would never know.
    """
    try:
        with one_line_errors():
            yield
    except BaseException as error:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise
        print(error if isinstance(error, SystemExit) else traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(1)

"""The group of processes of a distributed run: joining it, leaving it, and ending at once when one fails."""

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
    """Join the group of processes that ``launcher`` started: on GPUs, or with gloo where there is no CUDA.

    Raises:
        ValueError: if the launcher's variables are missing or there are more processes than GPUs.
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
                f'{processes} processes were asked for on a machine with {gpus} GPUs; start at most {gpus}'
            )
        # As mmengine's Runner would, but before a checkpoint to resume is agreed on.
        init_dist(launcher, **settings, **(_rendezvous() if launcher == 'pytorch' else {}))
        return
    if launcher != 'pytorch':
        raise ValueError(f'--launcher {launcher} needs GPUs and finds none; on CPUs use tools/dist_train.sh')
    # mmengine would choose a CUDA device here, which fails on a CPU build, unless it finds the group already there.
    timeout = timedelta(seconds=settings.get('timeout', 600))
    torch.distributed.init_process_group('gloo', timeout=timeout, **_rendezvous())
    wrapper = config.get('model_wrapper_cfg') or dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _rendezvous() -> dict[str, Any]:
    """Where torchrun's processes find each other, as arguments of ``init_process_group``.

    torchrun keeps one store over its restarts, so without a prefix for each start the processes of the second would
    find the addresses of the first's, which are dead.
    """
    store, rank, world_size = next(rendezvous('env://'))
    start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return dict(store=PrefixStore(f'start_{start}', store), rank=rank, world_size=world_size)


def tear_down_processes() -> None:
    """Leave the process group, if there is one, at the end of a run that went well.

    A process that ended with the group still there was once aborted, and the whole run counted as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def fail_at_once() -> Iterator[None]:
    """End in one line, as :func:`~pixnerd_plugin.cli.one_line_errors`; within a group of processes, there and then.

    Python's own end waits for the group's threads, and they for the other ranks. Beside a rank that hangs, one that has
    noticed would hang as well, and the launcher would hear of nothing.
    """
    try:
        with one_line_errors():
            yield
    except BaseException as error:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise
        print(error if isinstance(error, SystemExit) else traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(1)

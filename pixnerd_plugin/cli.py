"""What the commands in ``tools/`` share: errors in one line, configs, devices, finding the checkpoint to resume."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit code 1 for what its user can put right.

    That is every ValueError, OSError and FloatingPointError, too much damaged data, and a part that no registry knows.
    Anything else is a fault of the program and keeps its traceback; PIXNERD_TRACEBACK=1 shows it for all of them.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, KeyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != 'TooManyDamaged':
            raise
        is_unknown_key = isinstance(error, KeyError) and 'registry' not in str(error)
        if is_unknown_key or os.environ.get('PIXNERD_TRACEBACK'):
            raise
        rank = f'[rank {os.environ["RANK"]}] ' if 'RANK' in os.environ else ''
        sys.exit(f'{rank}error: {_one_line(error)}')
    except KeyboardInterrupt:
        sys.exit('interrupted')


@contextmanager
def fail_at_once() -> Iterator[None]:
    """End the process there and then if the block fails within a group of processes.

    Python's own end waits for the group's threads, and they for the other ranks. Beside a rank that hangs, one that has
    noticed would hang as well, and the launcher would hear of nothing.
    """
    try:
        yield
    except BaseException as error:
        import torch

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise
        print(error if isinstance(error, SystemExit) else traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(1)


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # A loader's worker passes its whole traceback on, the message last.
    return lines[-1] if lines[0].startswith('Caught ') else ' '.join(lines)


def parse_size(text: str) -> tuple[int, int]:
    """``'512x768'`` to height and width; ValueError if it is anything else."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or 0 in map(int, match.groups()):
        raise ValueError(f'{text!r} is not HEIGHTxWIDTH in pixels, such as 512x768')
    return int(match[1]), int(match[2])


def parse_region(text: str) -> tuple[int, int, int, int]:
    """``'0,0,256,512'`` to top, left, bottom and right; ValueError if it is anything else."""
    match = re.fullmatch(r'(\d+),(\d+),(\d+),(\d+)', text)
    if not match:
        raise ValueError(f'{text!r} is not TOP,LEFT,BOTTOM,RIGHT in pixels, such as 0,0,256,512')
    return int(match[1]), int(match[2]), int(match[3]), int(match[4])


def memory(*fields: str) -> list[float] | None:
    """MiB that Linux counts for this process under each name (VmRSS, VmHWM, RssAnon, ...); None elsewhere."""
    status = Path('/proc/self/status')
    if not status.exists():
        return None
    counted = dict(line.split(':', 1) for line in status.read_text().splitlines())
    return [int(counted[name].split()[0]) / 1024 for name in fields]


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Any:
    """Read a config file and merge ``options`` (dotted names to values) into it.

    Raises:
        FileNotFoundError: if the file or one of its bases is missing.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path} does not exist; the configs that come with PixNerd are in mm_configs/')
    config = Config.fromfile(path)
    config.merge_from_dict(dict(options or {}))
    return config


def hide_broken_torchvision() -> None:
    """Let a torchvision that fails to import count as absent.

    PyPI's is built for CUDA; beside a CPU build of torch its import raises RuntimeError, which would end mmengine's
    Runner although nothing here needs torchvision.
    """
    if importlib.util.find_spec('torchvision') is None:
        return
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError, OSError, AttributeError):
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        sys.modules['torchvision'] = None  # type: ignore[assignment]


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, where the C library is glibc: the next step needs it again.

    glibc gives blocks of megabytes back to the kernel, which must fill them with zeros each time they are asked for.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    map_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    # An older glibc refuses the first; the second alone would map every block.
    if mallopt(map_threshold, 2**30):
        mallopt(trim_threshold, 2**31 - 1)


def set_up_processes(config: Any, launcher: str) -> None:
    """Join the group of processes that ``launcher`` started: on GPUs, or with gloo where there is no CUDA.

    Raises:
        ValueError: if the launcher's variables are missing or there are more processes than GPUs.
    """
    import torch

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
        from mmengine.dist import init_dist

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
    from torch.distributed import PrefixStore, rendezvous

    store, rank, world_size = next(rendezvous('env://'))
    start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return dict(store=PrefixStore(f'start_{start}', store), rank=rank, world_size=world_size)


def tear_down_processes() -> None:
    """Leave the process group, if there is one, at the end of a run that went well.

    A process that ended with the group still there was once aborted, and the whole run counted as failed.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def require_checkpoint(path: str | Path) -> Path:
    """Return ``path`` if it is a checkpoint that is whole to the last bit: every part of it is read and summed.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is cut short, altered, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    # The directory of a zip archive is at its end, so a file cut short has none.
    if not zipfile.is_zipfile(path):
        raise ValueError(f'checkpoint {path} is cut short or no checkpoint; take the one before it')
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the CRC-32 of each tensor with the one it was stored with
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, zlib.error) as error:
        raise ValueError(f'checkpoint {path} is damaged ({error}); take the one before it') from None
    if damaged:
        raise ValueError(f'checkpoint {path} is damaged: the checksum of {damaged} is wrong; take the one before it')
    return path


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the last checkpoint written in ``work_dir``; if it is damaged, the one before; None if there is none.

    Raises:
        ValueError: if there are some, but all of them are damaged.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    # Only the name in it: the folder may have been moved since. Later ones are of another run in the same folder.
    last = _step(pointer.read_text().strip()) if pointer.is_file() else -1
    candidates = [path for path in Path(work_dir).glob('*.pth') if _step(path.name) >= 0]
    if last >= 0:
        candidates = [path for path in candidates if _step(path.name) <= last]
    candidates.sort(key=lambda path: _step(path.name), reverse=True)
    for path in candidates:
        try:
            return require_checkpoint(path)
        except ValueError as error:
            print(f'CHECKPOINT DAMAGED: {error}', file=sys.stderr)
    if candidates:
        raise ValueError(
            f'all {len(candidates)} checkpoints in {work_dir} are damaged; restore one, or train in another folder'
        )
    return None


def _step(name: str) -> int:
    match = re.search(r'(?:iter|epoch)_(\d+)\.pth$', name)
    return int(match[1]) if match else -1

"""Find what a run starts from: the last complete checkpoint, or the weights of another run."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper

from pixnerd_plugin.checkpoints import load_into
from pixnerd_plugin.checkpoints.contents import open_contents
from pixnerd_plugin.formats.plain_file import read_small
from pixnerd_plugin.formats.zip_archive import open_archive

from .hooks.scalars import forget_scalars_after


def set_resume(config: Any, checkpoint: str, force: bool = False) -> None:
    """Make ``config`` resume from ``checkpoint``; ``'auto'`` means the last one in its work folder, if there is one.

    Rank 0 looks for the checkpoint, and all processes use its result, or raise its error.

    Args:
        config: config of the run, with ``work_dir`` set.
        checkpoint: a file, or ``'auto'``.
        force: resume even if config, versions or data have changed.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it, or every checkpoint in the folder, is damaged.
    """
    outcome: list[Any] = [None]
    if is_main_process():
        try:
            outcome = [find_checkpoint(config.work_dir) if checkpoint == 'auto' else require_checkpoint(checkpoint)]
        except (ValueError, OSError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    (found,) = outcome
    if isinstance(found, Exception):
        raise found
    if found is not None:
        config.resume, config.load_from, config.resume_anyway = True, str(found), force
    elif is_main_process():
        print(f'No checkpoint in {config.work_dir}; training starts from the beginning.')
        forget_scalars_after(config.work_dir, 0)


def load_initial_weights(model: Any, path: str) -> None:
    """Start from the network of a file in any layout. (mmengine would silently skip weights that do not fit.)

    Raises:
        FileNotFoundError, ValueError: as :func:`~pixnerd_plugin.checkpoints.load_into` does.
    """
    model = model.module if is_model_wrapper(model) else model
    load_into(model.backbone, path)
    projector = open_contents(path).projector
    if projector and model.loss is not None:
        own = {name: tuple(tensor.shape) for name, tensor in model.loss.projector.state_dict().items()}
        if own == {name: tensor.shape for name, tensor in projector.items()}:
            model.loss.projector.load_state_dict({name: tensor.read() for name, tensor in projector.items()})
        else:
            print(f'The projector of {path} has another size; the alignment loss starts with a new one.')


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the last undamaged checkpoint in ``work_dir``, or None if it has no checkpoints.

    Raises:
        ValueError: if all checkpoints are damaged.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    # Only the name counts, because the folder may have moved. Later checkpoints belong to another run in this folder.
    last = _step(read_small(pointer, 2**12).decode(errors='replace').strip()) if pointer.is_file() else -1
    candidates = [path for path in Path(work_dir).glob('*.pth') if _step(path.name) >= 0 and path.is_file()]
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


def require_checkpoint(path: str | Path) -> Path:
    """Return ``path`` if it is a complete checkpoint; this reads the whole file and compares its checksums.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is cut short, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    # The directory of a zip archive is at its end, so a file cut short has none.
    if not zipfile.is_zipfile(path):
        raise ValueError(f'checkpoint {path} is cut short or not a checkpoint; use the one before it')
    try:
        # What torch never writes, such as compressed or overlapping records, would take for ever to compare.
        open_archive(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the CRC-32 of each tensor with the one it was stored with
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise ValueError(f'checkpoint {path} is damaged ({error}); use the one before it') from None
    if damaged:
        raise ValueError(f'checkpoint {path} is damaged: the checksum of {damaged} is wrong; use the one before it')
    return path


def _step(name: str) -> int:
    match = re.search(r'(?:iter|epoch)_(\d{1,18})\.pth$', name)
    return int(match[1]) if match else -1

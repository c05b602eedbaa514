"""Find what a run starts from: the last complete checkpoint, or the weights of another run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper

from pixnerd_plugin.checkpoints import load_into, read_checkpoint
from pixnerd_plugin.checkpoints.contents import open_contents
from pixnerd_plugin.formats.atomic import PREFIX
from pixnerd_plugin.formats.plain_file import read_small
from pixnerd_plugin.formats.zip_archive import open_archive

from .logs import set_aside_after

# What mmengine's Runner and our hooks continue from.
_PARTS = ('meta', 'state_dict', 'message_hub', 'optimizer')
_MAX_POINTER = 2**12


def set_resume(
    config: Any, checkpoint: str, force: bool = False, reset_schedule: bool = False, restarted: bool = False
) -> None:
    """Make ``config`` resume from ``checkpoint``; ``'auto'`` means the last one in its work folder, if there is one.

    Rank 0 looks for the checkpoint, and all processes use its result, or raise its error.

    Args:
        config: config of the run, with ``work_dir`` set.
        checkpoint: a file, or ``'auto'``.
        force: resume even if config, versions or data have changed.
        reset_schedule: take the optimiser's settings, the schedule and the length from the config.
        restarted: the launcher starts a run again, which may have saved since it resumed from ``checkpoint``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it, or every checkpoint in the folder, is damaged, or it is no state of a training.
    """

    def find() -> Path | None:
        last = find_checkpoint(config.work_dir) if restarted or checkpoint == 'auto' else None
        return require_checkpoint(checkpoint) if last is None and checkpoint != 'auto' else last

    found = _on_main_process(find)
    if found is not None:
        config.resume, config.load_from = True, str(found)
        config.resume_anyway, config.reset_schedule = force, reset_schedule
    else:
        config.resume = False
        if is_main_process():
            print(f'No checkpoint in {config.work_dir}; training starts from the beginning.')
            set_aside_after(config.work_dir, 0)


def require_fresh(work_dir: str | Path) -> None:
    """Check, on all processes alike, that ``work_dir`` holds no run that a new one would mix with.

    Logs of a start that saved nothing are set aside.

    Raises:
        ValueError: if it has checkpoints.
    """

    def check() -> None:
        if candidates := _candidates(work_dir):
            raise ValueError(
                f'{work_dir} holds a run already ({candidates[0].name}); go on with it by --resume, '
                'or name a new folder with --work-dir'
            )
        set_aside_after(work_dir, 0)

    _on_main_process(check)


def _on_main_process(action: Callable[[], Any]) -> Any:
    """What ``action`` returns or raises on rank 0, on all ranks."""
    outcome: list[Any] = [None]
    if is_main_process():
        try:
            outcome = [action()]
        except (ValueError, OSError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def load_initial_weights(model: Any, path: str, new_classes: bool = False) -> None:
    """Start from the network of a file in any layout. (mmengine would silently skip weights that do not fit.)

    With ``new_classes``, those of the network are others than the file's.

    Raises:
        FileNotFoundError, ValueError: as :func:`~pixnerd_plugin.checkpoints.load_into` does.
    """
    model = model.module if is_model_wrapper(model) else model
    # A network that is to learn mean velocities starts from one that gives velocities.
    load_into(model.backbone, path, new='step_embed.', new_classes=new_classes)
    found, wanted = (
        part.get('prediction', 'velocity')
        for part in (read_checkpoint(path).architecture, getattr(model.backbone, 'architecture', dict)())
    )
    if found != wanted:
        model.backbone.head.init_weights()
        print(f'The network of {path} predicts the {found}, and this one the {wanted}; its last layer starts anew.')
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
    candidates = _candidates(work_dir)
    for path in candidates:
        try:
            return require_checkpoint(path)
        except (ValueError, OSError) as error:
            print(f'CHECKPOINT DAMAGED: {error}', file=sys.stderr)
    if candidates:
        raise ValueError(
            f'all {len(candidates)} checkpoints in {work_dir} are damaged; restore one, or train in another folder'
        )
    return None


def require_checkpoint(path: str | Path) -> Path:
    """Return ``path`` if training can go on from it; this reads the whole file and compares its checksums.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is cut short, damaged, or not the state of a training.
    """
    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise ValueError(f'checkpoint {path} is no file; --resume alone takes the last one of --work-dir')
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        # What torch never writes, such as compressed or overlapping records, would take for ever to compare.
        open_archive(path).verify()
        # Mapped, so that no tensor is read. What the checks above let through, torch may still refuse.
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception as error:  # torch has no class of its own for a file that it cannot read
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f'checkpoint {path} is cut short or damaged ({reason}); use the one before it') from None
    if missing := _missing(content):
        raise ValueError(
            f'checkpoint {path} is no state of a training (it has no {", ".join(missing)}); to start from its weights '
            f'instead of resuming: --cfg-options load_from={path}'
        )
    return path


def _missing(content: Any) -> list[str]:
    """The parts that a checkpoint lacks to go on from."""
    if not isinstance(content, Mapping):
        return list(_PARTS)
    missing = [part for part in _PARTS if not isinstance(content.get(part), Mapping)]
    counts = ('iter', 'epoch') if 'meta' not in missing else ()
    return missing + [f'meta.{count}' for count in counts if type(content['meta'].get(count)) is not int]


def _candidates(work_dir: str | Path) -> list[Path]:
    """The checkpoints of the run in ``work_dir``, the last first; what a killed process left half written is none."""
    folder, pointer = Path(work_dir), Path(work_dir) / 'last_checkpoint'
    named = ''
    if pointer.is_file() and pointer.stat().st_size <= _MAX_POINTER:
        named = read_small(pointer, _MAX_POINTER).decode(errors='replace').strip()
    found = _checkpoints(folder)
    # The folder may have moved, so the pointer's own folder counts only for a run that saves elsewhere (out_dir).
    if not found and _step(Path(named).name) >= 0:
        found = _checkpoints(Path(named).parent)
    # Later checkpoints belong to another run in this folder.
    last = _step(Path(named).name)
    if last >= 0:
        found = [path for path in found if _step(path.name) <= last] or found
    return sorted(found, key=lambda path: _step(path.name), reverse=True)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.glob('*.pth') if _step(path.name) >= 0 and path.is_file()]


def _step(name: str) -> int:
    match = re.search(r'(?:iter|epoch)_(\d{1,18})\.pth$', name)
    return int(match[1]) if match and not name.startswith(PREFIX) else -1

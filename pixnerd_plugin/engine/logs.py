"""The logs of a training run, over all its starts: reading them, and taking out what a later start repeats."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from pixnerd_plugin.formats.atomic import atomic_path

# Scalars that depend on the machine and the moment, not on the training.
_MEASURED = ('time', 'data_time', 'images_per_second', 'data_wait', 'mfu', 'memory')


def is_measured(name: str) -> bool:
    """Whether a logged scalar is a measured time or rate, which differs between runs."""
    return name.rsplit('/', 1)[-1] in _MEASURED


def read_scalars(work_dir: str | Path, strict: bool = False) -> dict[int, dict[str, Any]]:
    """The scalars of a run by iteration, in order, over all its starts.

    Args:
        work_dir: a work folder of tools/train.py, or one ``scalars.json``.
        strict: raise if two starts logged the same iteration; otherwise the later one counts.

    Raises:
        FileNotFoundError: if there is no log.
        ValueError: if a line is not a log line; with ``strict``, if an iteration occurs twice.
    """
    path = Path(work_dir)
    logs = [path] if path.is_file() else sorted(path.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(f'{work_dir} is not the work folder of a training: it has no */vis_data/scalars.json')
    entries: dict[int, dict[str, Any]] = {}
    for log in logs:
        text = log.read_text()
        # A process killed while writing leaves an incomplete last line.
        for line in text.splitlines()[: None if text.endswith('\n') else -1]:
            try:
                entry = json.loads(line)
                step = entry['step']
            except (ValueError, KeyError, TypeError):
                raise ValueError(f'{log}: not a line of scalars: {line[:80]!r}') from None
            # A validation has a line of its own.
            held_out = any(name.startswith('val/') for name in entry)
            if not held_out and 'loss' not in entry:
                continue
            known = entries.setdefault(step, {})
            if strict and not held_out and 'loss' in known:
                raise ValueError(f'{log}: iteration {step} is logged twice')
            known.update(entry)
    return dict(sorted(entries.items()))


def is_validated(work_dir: str | Path, iteration: int) -> bool:
    """Whether a run has logged a validation at an iteration."""
    logs = Path(work_dir).glob('*/vis_data/scalars.json')
    lines = itertools.chain.from_iterable(log.read_text(errors='replace').splitlines(keepends=True) for log in logs)
    return any('"val/' in line and line.endswith('\n') and _step(line) == iteration for line in lines)


def set_aside_after(work_dir: str | Path, iteration: int) -> None:
    """Take lines of later iterations, and an incomplete line, out of all logs of a work folder.

    Nothing is lost: a log that had such lines is kept beside the new one, as ``scalars.json.1`` or with the next free
    number.
    """
    for log in Path(work_dir).glob('*/vis_data/*.json'):
        lines = log.read_text(errors='replace').splitlines(keepends=True)
        kept = [line for line in lines if _step(line) <= iteration]
        if len(kept) == len(lines):
            continue
        names = (log.with_name(f'{log.name}.{number}') for number in itertools.count(1))
        old = next(name for name in names if not name.exists())
        if not kept:
            log.rename(old)
            continue
        # A copy: killed in between, the log is still there.
        with atomic_path(old) as temporary:
            shutil.copyfile(log, temporary)
        with atomic_path(log) as temporary:
            temporary.write_text(''.join(kept))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)['step'])
    except (ValueError, KeyError, TypeError):
        return float('inf')

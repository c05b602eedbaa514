"""Averages of a training that PowerEMAHook stored, and the building of others from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors
from pixnerd_plugin.formats.plain_file import parse_json
from pixnerd_plugin.formats.safetensors_file import open_safetensors, write_safetensors
from pixnerd_plugin.formats.schema import integer, naming, number, table
from pixnerd_plugin.functional.averages import MAX_SIGMA_REL, combination, exponent

from .metadata import METADATA_KEY

AVERAGE_KEY = 'pixnerd_average'
"""Entry of the metadata of a stored average: ``steps`` (of the optimiser), ``iteration`` and ``sigma_rel``."""

_NAME = re.compile(r'iter_\d{1,18}_sigma_[\d.e-]+\.safetensors')
_DESCRIBED = table(steps=integer(1, 2**53), iteration=integer(1, 2**53), sigma_rel=number(1e-6, MAX_SIGMA_REL))


def snapshot_name(iteration: int, sigma_rel: str) -> str:
    return f'iter_{iteration}_sigma_{sigma_rel}.safetensors'


@dataclass(frozen=True)
class Snapshot:
    """One stored average: its file, its tensors (not read yet), its texts, and what :data:`AVERAGE_KEY` says."""

    path: Path
    tensors: Tensors
    texts: dict[str, str]
    steps: int
    iteration: int
    sigma_rel: float


def find_snapshots(folder: str | Path) -> list[Snapshot]:
    """The stored averages of a run, oldest first.

    Args:
        folder: the work folder, or its ``ema``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if one is damaged, or not of the same network; the message names it.
    """
    folder = Path(folder)
    paths = [path for place in (folder / 'ema', folder) for path in place.glob('*') if _NAME.fullmatch(path.name)]
    if not paths:
        raise FileNotFoundError(
            f'no averages in {folder}/ema (iter_N_sigma_S.safetensors): train with PowerEMAHook in custom_hooks'
        )
    found = sorted((_open(path) for path in paths), key=lambda one: (one.steps, one.sigma_rel))
    shapes = {name: tensor.shape for name, tensor in found[0].tensors.items()}
    for one in found:
        if {name: tensor.shape for name, tensor in one.tensors.items()} != shapes:
            raise ValueError(f'{one.path} is of another network than {found[0].path}')
    return found


def _open(path: Path) -> Snapshot:
    tensors, texts = open_safetensors(path)
    with naming(path):
        if AVERAGE_KEY not in texts:
            raise ValueError(f'its metadata has no {AVERAGE_KEY}: PowerEMAHook did not write it')
        described = parse_json(texts[AVERAGE_KEY])
        _DESCRIBED.check(f'its {AVERAGE_KEY}', described)
        if described.keys() != {'steps', 'iteration', 'sigma_rel'}:
            raise ValueError(f'its {AVERAGE_KEY} lacks steps, iteration or sigma_rel')
    return Snapshot(path, tensors, texts, **described)


def build_average(
    snapshots: list[Snapshot],
    sigma_rel: float,
    target: str | Path,
    iteration: int | None = None,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> float:
    """Write the average of any length as a safetensors file in float32, holding one tensor in memory at a time.

    Args:
        snapshots: those of :func:`find_snapshots`.
        sigma_rel: its length, as a share of the training until then.
        target: the file to write.
        iteration: where in the training; by default where the last one was stored.
        progress: is told the bytes written.

    Returns:
        How far its profile is from the wanted one, relative to the latter's norm.

    Raises:
        ValueError: if nothing was stored at that iteration, or ``sigma_rel`` is out of range.
    """
    power = exponent(sigma_rel)
    last = max(one.iteration for one in snapshots) if iteration is None else iteration
    steps = next((one.steps for one in snapshots if one.iteration == last), None)
    if steps is None:
        known = sorted({one.iteration for one in snapshots})
        raise ValueError(f'no average was stored at iteration {last}, only at {", ".join(map(str, known))}')
    # A later one knows weights that this average must not.
    usable = [one for one in snapshots if one.steps <= steps]
    factors, error = combination([(one.steps, exponent(one.sigma_rel)) for one in usable], (steps, power))

    def lazy(name: str, like: LazyTensor) -> LazyTensor:
        def read() -> Tensor:
            total = torch.zeros(like.shape, dtype=torch.float64)
            for factor, one in zip(factors, usable, strict=True):
                total += factor * one.tensors[name].read().double()
            return total.float()

        return LazyTensor(torch.float32, like.shape, read) if like.dtype.is_floating_point else like

    newest = next(one for one in usable if one.steps == steps)
    tensors = {name: lazy(name, tensor) for name, tensor in newest.tensors.items()}
    texts = {METADATA_KEY: newest.texts[METADATA_KEY]} if METADATA_KEY in newest.texts else {}
    write_safetensors(Path(target), tensors, texts, progress)
    return error

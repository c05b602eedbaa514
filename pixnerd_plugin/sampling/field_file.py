"""Field trajectories as safetensors files. Files come from strangers: a file may say anything, and is checked.

Tensors: ``noise`` (B, C, H, W), ``tokens.00000``... (branches, B, L, D), ``head.*``. The metadata's entry is a JSON
object: ``head`` and ``sampler`` (registry dicts), ``token_grid``, ``dim``, ``patch_size``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic import atomic_path
from ..checkpoints.metadata import is_part, is_plain, is_sampling
from ..registry import MODELS

METADATA_KEY = 'pixnerd_field'


def write_field(path: str | Path, field: Any) -> None:
    """Write a trajectory, head included; whole or not at all."""
    tensors = {f'tokens.{i:05d}': s.contiguous() for i, s in enumerate(field.tokens)}
    tensors |= {f'head.{name}': tensor.contiguous() for name, tensor in field.head.state_dict().items()}
    description = dict(
        head=field.head.architecture(),
        sampler=field.sampler.config(),
        token_grid=field.token_grid,
        dim=field.tokens[0].shape[-1],
        patch_size=field.head.patch_size,
    )
    with atomic_path(path) as temporary:
        save_file(dict(tensors, noise=field.noise.contiguous()), temporary, {METADATA_KEY: json.dumps(description)})


def read_field(path: str | Path) -> dict[str, Any]:
    """Read what :func:`write_field` wrote: the arguments of a ``FieldTrajectory``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a field trajectory, or damaged, or asks for anything but our own registered parts.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such field trajectory')
    try:
        with safe_open(str(path), framework='pt') as file:
            description = json.loads((file.metadata() or {}).get(METADATA_KEY, 'null'))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'{path}: not a readable safetensors file ({error}); is it complete?') from None
    if description is None:
        raise ValueError(f'{path}: not a field trajectory; one is written by sampling with record_field=True')
    try:
        return _checked(description, tensors)
    except ValueError as error:
        raise ValueError(f'{path}: a damaged field trajectory: {error}; sample and save it again') from None


def _checked(description: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    names = ('head', 'sampler', 'token_grid', 'dim', 'patch_size')
    if not isinstance(description, dict) or not all(name in description for name in names):
        raise ValueError(f'its description must have {", ".join(names)}')
    # A dotted name would make mmengine import, and call, whatever it points to.
    if not is_sampling(description['sampler']):
        raise ValueError(f'sampler={str(description["sampler"])[:100]!r} is none of this package')
    if not is_part(description['head'], nn.Module):
        raise ValueError(f'head={str(description["head"])[:100]!r} is none of this package')
    grid = description['token_grid']
    if not (isinstance(grid, list) and len(grid) == 2 and all(type(n) is int and n > 0 for n in grid)):
        raise ValueError(f'token_grid={str(grid)[:50]!r} is not [rows, columns]')
    noise = tensors.get('noise')
    if noise is None or noise.ndim != 4 or not noise.is_floating_point():
        raise ValueError('its noise is not (B, C, H, W)')
    sampler = MODELS.build(description['sampler'])
    tokens = [tensors[name] for name in sorted(tensors) if name.startswith('tokens.')]
    _check_tokens(tokens, sampler, (len(noise), grid[0] * grid[1], description['dim']))
    return dict(
        head=_head(description, noise.shape[1], tensors),
        sampler=sampler,
        noise=noise,
        token_grid=grid,
        tokens=tokens,
    )


def _check_tokens(tokens: list[Tensor], sampler: Any, shape: tuple[int, int, Any]) -> None:
    evaluations = 0

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return x

    sampler.integrate(velocity, torch.zeros(1))
    if len(tokens) != evaluations:
        raise ValueError(f'it has the patch vectors of {len(tokens)} evaluations, and its sampler makes {evaluations}')
    for s in tokens:
        if s.ndim != 4 or s.shape[0] not in (1, 2) or s.shape[1:] != shape or not s.is_floating_point():
            raise ValueError(f'its patch vectors are {tuple(s.shape)}, not (1 or 2, {", ".join(map(str, shape))})')


def _head(description: dict[str, Any], in_channels: int, tensors: dict[str, Tensor]) -> nn.Module:
    weights = {name.removeprefix('head.'): tensor for name, tensor in tensors.items() if name.startswith('head.')}
    arguments = dict(description['head'], in_channels=in_channels)
    arguments |= {name: description[name] for name in ('dim', 'patch_size')}
    if not all(map(is_plain, arguments.values())) or not 1 <= arguments.get('depth', 1) <= 512:
        raise ValueError('its head has arguments that no field has')
    try:
        with torch.device('meta'):
            head: nn.Module = MODELS.build(arguments)
        head.load_state_dict(weights, assign=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f'its head does not fit its weights ({str(error).splitlines()[-1].strip()[:200]})') from None
    return head

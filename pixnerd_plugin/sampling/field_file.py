"""Field trajectories as safetensors files. Whoever wrote one, nothing in it is trusted.

Tensors: ``noise`` (B, C, H, W), ``tokens.00000``... (branches, B, L, D), ``head.*``. The metadata's entry is a JSON
object: ``head`` and ``sampler`` (a part's ``type`` and arguments), ``token_grid``, ``dim``, ``patch_size``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.formats.parts import build_part
from pixnerd_plugin.formats.schema import check_table, integer, sequence

METADATA_KEY = 'pixnerd_field'

_RULES = dict(token_grid=sequence(integer(1, 2**16), 2, 2), dim=integer(1, 2**16), patch_size=integer(1, 2**10))


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
    parts = {name: description.pop(name, None) for name in ('head', 'sampler')} if type(description) is dict else {}
    check_table('its description', description, _RULES)
    if absent := [name for name in _RULES if name not in description]:
        raise ValueError(f'its description has no {absent[0]}')
    grid = (description['token_grid'][0], description['token_grid'][1])
    noise = tensors.get('noise')
    if noise is None or noise.ndim != 4 or not noise.is_floating_point() or not noise.numel():
        raise ValueError('its noise is not (B, C, H, W)')
    if not noise.isfinite().all():
        raise ValueError('its noise holds NaN or infinite values')
    sampler = build_part(parts['sampler'], 'sampler')
    if not sampler.deterministic:
        raise ValueError('its sampler draws noise at every step, and no field can be recorded with it')
    tokens = [tensors[name] for name in sorted(tensors) if name.startswith('tokens.')]
    _check_tokens(tokens, sampler, (len(noise), grid[0] * grid[1], description['dim']))
    shape = dict(dim=description['dim'], patch_size=description['patch_size'], in_channels=noise.shape[1])
    head = _head(parts['head'], shape, tensors)
    return dict(head=head, sampler=sampler, noise=noise, token_grid=grid, tokens=tokens)


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


def _head(description: Any, shape: dict[str, int], tensors: dict[str, Tensor]) -> nn.Module:
    weights = {name.removeprefix('head.'): tensor for name, tensor in tensors.items() if name.startswith('head.')}
    try:
        with torch.device('meta'):
            head: nn.Module = build_part(description, 'head', **shape)
        head.load_state_dict(weights, assign=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f'its head does not fit its weights ({str(error).splitlines()[-1].strip()[:200]})') from None
    return head

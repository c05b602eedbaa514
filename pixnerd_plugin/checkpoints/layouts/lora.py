"""Adapters in files: the names of PEFT, ComfyUI, Kohya, OneTrainer, diffusers and LyCORIS in, ComfyUI's out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors, require_finite
from pixnerd_plugin.formats.plain_file import read_json, require_file
from pixnerd_plugin.formats.safetensors_file import open_safetensors
from pixnerd_plugin.formats.schema import Rule, naming, number, one_of, shown

from .adapters import Adapter, Shape, adapter_of

# ComfyUI's stock LoRA loader knows a model's layers by the first, and with underscores for dots by the second.
OUR_PREFIX, OUR_FLAT_PREFIX = 'diffusion_model.', 'lora_unet_'
_PREFIXES = (
    *('base_model.model.', 'model.diffusion_model.', 'diffusion_model.', 'transformer.', 'unet.', 'backbone.'),
    *('lora_unet_', 'lora_transformer_', 'lycoris_'),
)
# Adapters of the text encoders that other models are trained with.
_OTHERS = re.compile(r'(?:base_model\.model\.)?(?:lora_(?:prior_)?te|text_encoder|te\d?[._]|clip|t5)')

_PART = re.compile(
    r'(.+?)(?:'
    r'\.lora_(A|B|down|up)(?:\.default)?\.weight|[._]lora\.(down|up)\.weight|\.lora_linear_layer\.(down|up)\.weight|'
    r'\.(lora_magnitude_vector|dora_scale)(?:\.default)?(?:\.weight)?|'
    r'\.(alpha|diff|diff_b|hada_\w+|lokr_\w+))'
)
_ROLES = {'A': 'down', 'B': 'up', 'lora_magnitude_vector': 'magnitude', 'dora_scale': 'magnitude', 'diff_b': 'diff'}

# Roles as ComfyUI's stock loader names them.
_NAMES = {'down': 'lora_A.weight', 'up': 'lora_B.weight', 'magnitude': 'dora_scale'}

Lora = dict[str, Adapter]
"""Adapters by the name of the parameter that they change."""


class LoraFile(NamedTuple):
    """Adapters by the names that a file gives the parameters, without prefix, and its entries of other models."""

    adapters: Lora
    skipped: list[str]


def read_lora(path: str | Path, parameters: Mapping[str, Shape]) -> LoraFile:
    """Read the adapters of a network.

    Args:
        path: as :func:`open_lora` takes it.
        parameters: shapes of the network's parameters, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds no adapter, or one of another network.
    """
    found = open_lora(path)
    lora: Lora = {}
    known = {name.replace('.', '_'): name for name in parameters}
    absent = [name for name in found.adapters if name.replace('.', '_') not in known]
    if absent:
        more = f' and {len(absent) - 1} others' if len(absent) > 1 else ''
        layer = absent[0].removesuffix('.weight')
        raise ValueError(f'{path}: it changes {layer}{more}, a layer that this network does not have')
    for parameter, adapter in found.adapters.items():
        name = known[parameter.replace('.', '_')]
        if name in lora:
            raise ValueError(f'{path}: it changes {name} twice, under different names')
        if not adapter.fits(parameters[name]):
            sizes = ', '.join(f'{role} {part.shape}' for role, part in adapter.parts.items())
            raise ValueError(f'{path}: the {adapter.describe()} of {name} is {sizes}, the layer is {parameters[name]}')
        lora[name] = adapter
    return LoraFile(lora, found.skipped)


def open_lora(path: str | Path) -> LoraFile:
    """The adapters of a safetensors file, or of a folder that PEFT saved.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, a tensor is no part of an adapter, or an adapter is incomplete.
    """
    path = Path(path)
    if path.is_dir():
        path = path / 'adapter_model.safetensors'
    require_file(path, 'LoRA file')
    tensors = open_safetensors(path)[0]
    settings = path.with_name('adapter_config.json')
    if settings.is_file() and any(name.startswith('base_model.') for name in tensors):
        return group_lora(path, tensors, _peft_settings(settings))
    return group_lora(path, tensors)


def is_adapter(tensors: Mapping[str, Any]) -> bool:
    """Whether these names are of a file of adapters."""
    parts = [match for name in tensors if (match := _PART.fullmatch(name))]
    return bool(parts) and len(parts) > len(tensors) / 2


def is_stock(name: str) -> bool:
    """Whether ComfyUI's stock LoRA loader applies an entry of this name."""
    return name.startswith((OUR_PREFIX, OUR_FLAT_PREFIX))


def group_lora(path: Path, tensors: Tensors, peft: Mapping[str, Any] | None = None) -> LoraFile:
    """The adapters that ``tensors`` make; errors as in :func:`open_lora`."""
    groups: dict[str, dict[str, LazyTensor]] = {}
    skipped = []
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name)
        if _OTHERS.match(name):
            skipped.append(name)
            continue
        if match is None:
            raise ValueError(
                f'{path}: {shown(name)} is no part of a LoRA, LoHa, LoKr or difference, such as x.lora_A.weight'
            )
        role = next(group for group in match.groups()[1:] if group)
        parameter = f'{_without_prefix(match[1])}.{"bias" if role == "diff_b" else "weight"}'
        group = groups.setdefault(parameter, {})
        if _ROLES.get(role, role) in group:
            raise ValueError(f'{path}: {name!r} is there twice under different names')
        group[_ROLES.get(role, role)] = tensor
    if not groups:
        raise ValueError(f'{path}: it holds no LoRA' + (f', only {skipped[0]} and the like' if skipped else ''))
    return LoraFile({name: _adapter(path, name, group, peft) for name, group in groups.items()}, skipped)


def _without_prefix(module: str) -> str:
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return module


def shapes_of(tensors: Mapping[str, LazyTensor | Tensor]) -> dict[str, Shape]:
    """The parameters of a state dict, as :func:`read_lora` takes them."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _adapter(path: Path, name: str, group: dict[str, LazyTensor], peft: Mapping[str, Any] | None) -> Adapter:
    what = f'{path}: {name.removesuffix(".weight")}'
    alpha = None
    if stored := group.pop('alpha', None):
        if stored.numel != 1:
            raise ValueError(f'{path}: the alpha of {name.removesuffix(".weight")} is not one number')
        alpha = float(require_finite(f'{what}.alpha', stored.read()))
    try:
        adapter = adapter_of({role: _finite(what, part) for role, part in group.items()}, alpha)
    except ValueError as error:
        raise ValueError(f'{what} {error}') from None
    if peft is None:
        return adapter
    if peft['use_dora'] and 'magnitude' not in group:
        raise ValueError(f'{what} is of a DoRA by its settings, and has no magnitudes')
    # rsLoRA divides by the root of the rank.
    return adapter._replace(alpha=peft['lora_alpha'] * (math.sqrt(adapter.rank or 1) if peft['use_rslora'] else 1.0))


def _finite(what: str, tensor: LazyTensor) -> LazyTensor:
    return tensor._replace(read=lambda: require_finite(what, tensor.read()))


_PEFT = dict(
    lora_alpha=number(-1e9, 1e9),
    peft_type=one_of('LORA'),
    use_rslora=one_of(True, False),
    use_dora=one_of(True, False),
    fan_in_fan_out=one_of(False),
    alpha_pattern=Rule('empty: one alpha for all layers', lambda value: value == {}),
)
_PEFT_DEFAULTS = dict(lora_alpha=8, peft_type='LORA', use_rslora=False, use_dora=False)


def _peft_settings(path: Path) -> dict[str, Any]:
    stored = read_json(path)
    with naming(f'{path}: not the settings of a LoRA'):
        if type(stored) is not dict:
            raise ValueError(f'it is {shown(stored)}, and a table is due')
        # PEFT writes null for what is not set.
        known = {name: stored[name] for name in _PEFT if stored.get(name) is not None}
        for name, value in known.items():
            _PEFT[name].check(name, value)
    return {**_PEFT_DEFAULTS, **known}


def merge_lora(tensors: Tensors, lora: Lora, strength: float = 1.0) -> Tensors:
    """The tensors of a network with ``strength`` times the adapters added, when they are read."""
    return {name: _merged(tensor, lora[name], strength) if name in lora else tensor for name, tensor in tensors.items()}


def _merged(tensor: LazyTensor, adapter: Adapter, strength: float) -> LazyTensor:
    return tensor._replace(read=lambda: adapter.added_to(tensor.read(), strength))


def lora_tensors(lora: Lora) -> Tensors:
    """The adapters under the names that ComfyUI's stock LoRA loader applies."""
    tensors: Tensors = {}
    for parameter, adapter in lora.items():
        module, _, kind = parameter.rpartition('.')
        module = f'{OUR_PREFIX if "." in module else OUR_FLAT_PREFIX}{module}'
        for role, part in adapter.parts.items():
            name = 'diff_b' if kind == 'bias' else _NAMES.get(role, role)
            tensors[f'{module}.{name}'] = _column(part) if role == 'magnitude' else part
        if adapter.alpha is not None:
            tensors[f'{module}.alpha'] = LazyTensor.of(torch.tensor(float(adapter.alpha)))
    return tensors


def _column(part: LazyTensor) -> LazyTensor:
    """PEFT's row of magnitudes as the column that others store."""
    if len(part.shape) != 1:
        return part
    return part._replace(shape=(*part.shape, 1), read=lambda: part.read()[:, None])


def split_peft(tensors: Tensors, alpha: float | None) -> tuple[Tensors, Lora]:
    """Part the state of a network that PEFT injected adapters into: the plain network, and the adapters.

    Raises:
        ValueError: if an adapter does not fit its layer, or nothing tells its alpha.
    """
    plain: Tensors = {}
    groups: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name) if '.lora_' in name else None
        if match:
            role = next(group for group in match.groups()[1:] if group)
            groups.setdefault(f'{match[1]}.weight', {})[_ROLES.get(role, role)] = tensor
        else:
            plain[name.replace('.base_layer.', '.')] = tensor
    if groups and alpha is None:
        raise ValueError('the file has LoRA weights, and its metadata does not say their alpha')
    lora = {}
    for name, group in groups.items():
        adapter = _adapter(Path(name), name, group, None)._replace(alpha=alpha)
        if name not in plain or not adapter.fits(plain[name].shape):
            raise ValueError(f'the LoRA of {name} does not fit its layer')
        lora[name] = adapter
    return plain, lora

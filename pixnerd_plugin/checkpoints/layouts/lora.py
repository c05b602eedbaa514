"""Low-rank adapters in files: PEFT's and ComfyUI's names in, ComfyUI's out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.formats.lazy import LazyTensor, require_finite
from pixnerd_plugin.formats.safetensors_file import open_safetensors

# ComfyUI's stock LoRA loader knows the model as diffusion_model; PEFT as base_model.model; the last is Kohya's.
OUR_PREFIX = 'diffusion_model.'
_PREFIXES = ('base_model.model.', 'diffusion_model.', 'transformer.', 'backbone.', 'lora_unet_')
_NAME = re.compile(r'(.+)\.(?:lora_(A|B|down|up)(?:\.default)?\.weight|(alpha))')
_ROLES = {'A': 'down', 'B': 'up'}


class Adapter(NamedTuple):
    """``weight + alpha / rank * up @ down``, ``down (rank, in)``, ``up (out, rank)``; alpha is the rank if None."""

    down: LazyTensor
    up: LazyTensor
    alpha: float | None = None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether this changes a weight of this shape."""
        down, up = self.down.shape, self.up.shape
        return len(down) == len(up) == 2 and (up[0], down[1]) == shape and up[1] == down[0] > 0

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """``weight`` with ``strength`` times the adapter added, computed in float32, in its own dtype."""
        change = self.up.read().to(weight.device).float() @ self.down.read().to(weight.device).float()
        return (weight.float() + strength * self.scale * change).to(weight.dtype)


Lora = dict[str, Adapter]
"""Adapters by the name of the module that they change."""


def read_lora(path: str | Path, layers: Mapping[str, tuple[int, ...]]) -> Lora:
    """Read the adapters of a network.

    Args:
        path: a safetensors file, with names of PEFT, ComfyUI (``lora_up``, ``lora_down``, ``alpha``) or Kohya; or a
            folder that PEFT saved.
        layers: shapes ``(out, in)`` of the weights of the network's linear layers, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, is no LoRA, or is one of another network.
    """
    path, alpha = Path(path), None
    if path.is_dir():
        path, alpha = path / 'adapter_model.safetensors', _peft_alpha(path / 'adapter_config.json')
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such LoRA file')
    lora = {}
    known = {name.replace('.', '_'): name for name in layers}
    for module, adapter in group_lora(path, open_safetensors(path)[0], alpha).items():
        if module.replace('.', '_') not in known:
            raise ValueError(f'{path}: it changes {module}, a layer that this network does not have')
        name = known[module.replace('.', '_')]
        if name in lora:
            raise ValueError(f'{path}: it changes {name} twice, under different names')
        if not adapter.fits(layers[name]):
            shapes = f'{adapter.up.shape} by {adapter.down.shape}'
            raise ValueError(f'{path}: the LoRA of {name} is {shapes}, and the layer is {layers[name]}')
        lora[name] = adapter
    return lora


def group_lora(path: Path, tensors: Mapping[str, LazyTensor], alpha: float | None = None) -> Lora:
    """The adapters of a file, by the names that it gives the layers, without prefix.

    Raises:
        ValueError: if a tensor is no part of an adapter, or an adapter is incomplete.
    """
    parts: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f'{path}: {name!r} is no part of a LoRA; parts end in lora_A.weight, lora_B.weight or alpha'
            )
        module, role = match[1], match[3] or _ROLES.get(match[2], match[2])
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        group = parts.setdefault(module, {})
        if role in group:
            raise ValueError(f'{path}: {name!r} is there twice under different names')
        group[role] = tensor
    if not parts:
        raise ValueError(f'{path}: it holds no LoRA')
    return {module: _adapter(path, module, group, alpha) for module, group in parts.items()}


def layers_of(tensors: Mapping[str, LazyTensor | Tensor]) -> dict[str, tuple[int, ...]]:
    """The linear layers of a state dict, as :func:`read_lora` takes them."""
    matrices = {name: tuple(tensor.shape) for name, tensor in tensors.items() if len(tensor.shape) == 2}
    return {name.removesuffix('.weight'): shape for name, shape in matrices.items()}


def _adapter(path: Path, module: str, group: Mapping[str, LazyTensor], alpha: float | None) -> Adapter:
    for role in ('down', 'up'):
        if role not in group:
            raise ValueError(f'{path}: {module} has no lora_{role}')
    if 'alpha' in group:
        if group['alpha'].numel != 1:
            raise ValueError(f'{path}: the alpha of {module} is not one number')
        alpha = float(require_finite(f'{path}: {module}.alpha', group['alpha'].read()))
    what = f'{path}: the LoRA of {module}'
    return Adapter(_finite(what, group['down']), _finite(what, group['up']), alpha)


def _finite(what: str, tensor: LazyTensor) -> LazyTensor:
    return tensor._replace(read=lambda: require_finite(what, tensor.read()))


def _peft_alpha(path: Path) -> float:
    try:
        settings = json.loads(path.read_text(encoding='utf-8'))
        if settings.get('use_rslora') or settings.get('use_dora') or settings.get('alpha_pattern'):
            raise ValueError('rsLoRA, DoRA and alpha_pattern are not supported')
        return float(settings['lora_alpha'])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: not the settings of a plain LoRA ({error})') from None


def merge_lora(tensors: Mapping[str, LazyTensor], lora: Lora, strength: float = 1.0) -> dict[str, LazyTensor]:
    """The tensors of a network with ``strength`` times the adapters added, when they are read."""
    changed = {f'{module}.weight': adapter for module, adapter in lora.items()}
    return {
        name: _merged(tensor, changed[name], strength) if name in changed else tensor
        for name, tensor in tensors.items()
    }


def _merged(tensor: LazyTensor, adapter: Adapter, strength: float) -> LazyTensor:
    return tensor._replace(read=lambda: adapter.added_to(tensor.read(), strength))


def lora_tensors(lora: Lora) -> dict[str, LazyTensor]:
    """The adapters under the names that ComfyUI's stock LoRA loader applies."""
    tensors = {}
    for module, adapter in lora.items():
        tensors[f'{OUR_PREFIX}{module}.lora_A.weight'] = adapter.down
        tensors[f'{OUR_PREFIX}{module}.lora_B.weight'] = adapter.up
        if adapter.alpha is not None:
            tensors[f'{OUR_PREFIX}{module}.alpha'] = LazyTensor.of(torch.tensor(float(adapter.alpha)))
    return tensors


def split_peft(tensors: Mapping[str, LazyTensor], alpha: float | None) -> tuple[dict[str, LazyTensor], Lora]:
    """Part the state of a network that PEFT injected adapters into: the plain network, and the adapters."""
    plain: dict[str, LazyTensor] = {}
    parts: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match and match[2]:
            parts.setdefault(match[1], {})[_ROLES.get(match[2], match[2])] = tensor
        else:
            plain[name.replace('.base_layer.', '.')] = tensor
    if parts and alpha is None:
        raise ValueError('the file has LoRA weights, and its metadata does not say their alpha')
    lora = {module: _adapter(Path(module), module, group, alpha) for module, group in parts.items()}
    for module, adapter in lora.items():
        layer = plain.get(f'{module}.weight')
        if layer is None or not adapter.fits(layer.shape):
            raise ValueError(f'the LoRA of {module} does not fit its layer')
    return plain, lora

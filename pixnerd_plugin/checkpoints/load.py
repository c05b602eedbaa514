"""Reading networks from files: the published Lightning checkpoints, mmengine's, and safetensors."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..registry import MODELS
from .architecture import infer_architecture
from .published import describe_difference, from_published, is_published

METADATA_KEY = 'pixnerd'
"""Entry of a safetensors file's metadata, and of mmengine's ``meta``, with the architecture."""

# Where one network's tensors may sit in a file, by the weights they are. The bare layout comes last.
_PREFIXES = {
    'ema': ('ema_denoiser.', 'backbone.', 'model.diffusion_model.', 'state_dict.', ''),
    'raw': ('denoiser.', 'module.backbone.', 'backbone.', 'model.diffusion_model.', 'state_dict.', ''),
}


class Checkpoint(NamedTuple):
    """One network as found in a file: tensors under our names, the architecture that fits, and the file's metadata."""

    tensors: dict[str, Tensor]
    architecture: dict[str, Any]
    metadata: dict[str, Any]


def load_backbone(path: str | Path, weights: str = 'ema') -> nn.Module:
    """Load a network from a file as a plain trainable module on the CPU, in the file's dtype.

    Args:
        path: published Lightning ``.ckpt``, mmengine ``.pth`` of ours, or ``.safetensors`` in either key layout.
        weights: ``'ema'`` (to sample from) or ``'raw'`` (to train on), where the file has both.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds no such weights, or does not fit its architecture exactly; one line.
    """
    checkpoint = read_checkpoint(path, weights)
    # Built without memory: the file's tensors become the parameters.
    with torch.device('meta'):
        net = MODELS.build(checkpoint.architecture)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    if problem := describe_difference(set(shapes), set(checkpoint.tensors)):
        raise ValueError(f'{path}: the tensors do not fit the architecture: {problem}')
    for name, tensor in checkpoint.tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f'{path}: {name} is {tuple(tensor.shape)}, and the architecture says {shapes[name]}')
    net.load_state_dict(checkpoint.tensors, assign=True)
    return net


def read_checkpoint(path: str | Path, weights: str = 'ema') -> Checkpoint:
    """Read one network's tensors and architecture from a file. Arguments and errors as in :func:`load_backbone`."""
    if weights not in _PREFIXES:
        raise ValueError(f"weights={weights!r} is not known; use 'ema' or 'raw'")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    tensors, metadata = _read_safetensors(path) if path.suffix == '.safetensors' else _read_pickle(path, weights)
    tensors = _select(path, tensors, weights)
    stored = metadata.get('weights')
    if stored and stored != weights and weights == 'raw':
        raise ValueError(f"{path}: the file holds the EMA weights only; load it with weights='ema'")
    if is_published(tensors):
        try:
            tensors = from_published(tensors)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
    architecture = metadata.get('architecture')
    if architecture is None:
        try:
            architecture = infer_architecture({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
    return Checkpoint(tensors, architecture, metadata)


def _select(path: Path, tensors: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """The tensors of the one network that ``weights`` asks for, prefix removed."""
    for prefix in _PREFIXES[weights]:
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if 's_embedder.proj.weight' in found or 'patch_embed.weight' in found:
            return found
    others = [w for w in _PREFIXES if w != weights]
    for other in others:
        for prefix in _PREFIXES[other]:
            if any(f'{prefix}{name}' in tensors for name in ('s_embedder.proj.weight', 'patch_embed.weight')):
                raise ValueError(f'{path}: the file has no {weights} weights; it has {other} weights')
    raise ValueError(f'{path}: no PixNerd network in this file; its first tensors are {", ".join(list(tensors)[:3])}')


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework='pt') as file:
            raw = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, json.loads(raw) if raw else {}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f'{path}: not a readable safetensors file ({error}); is it complete?') from None


def _read_pickle(path: Path, weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # mmap: only the tensors that are used are read from the disk.
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path}: not a PyTorch checkpoint, or cut short; is the file complete?')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'{path}: not a checkpoint that loads safely with weights_only ({reason})') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path}: a checkpoint holds a dict with state_dict, this holds a {type(content).__name__}')
    meta = content.get('meta') or {}
    metadata = meta.get(METADATA_KEY, {}) if isinstance(meta, dict) else {}
    # mmengine's EMA hook saves the averaged weights as state_dict and the raw ones as ema_state_dict.
    source = content.get('ema_state_dict') if weights == 'raw' and 'ema_state_dict' in content else None
    state = source if source is not None else content.get('state_dict', content)
    return {name: t for name, t in state.items() if isinstance(t, Tensor)}, metadata

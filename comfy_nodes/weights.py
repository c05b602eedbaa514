"""PixNerd's tensors in a state dict, whatever its key layout, and the metadata that travels with them.

A safetensors file has metadata in its header, but ComfyUI's own loaders and savers pass state dicts only. What the
tensors do not tell (coordinates, alignment, names) therefore rides along as one more tensor: its JSON text as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.checkpoints.architecture import find_architecture
from pixnerd_plugin.checkpoints.layouts.names import METADATA_TENSOR
from pixnerd_plugin.checkpoints.layouts.published import from_published, is_published
from pixnerd_plugin.checkpoints.metadata import METADATA_KEY, parse_metadata, parse_metadata_tensor

# The learned positions' name in files, and in ComfyUI's memory, where they are a layer.
POSITIONS = 'text_embed.positions'
POSITIONS_LAYER = 'text_embed.positions.weight'

# What quantisers put beside a weight: scales, and how it is packed.
_QUANTISED = ('comfy_quant', 'weight_scale', 'weight_scale_2', 'input_scale', 'scale_weight', 'scale_input')


def select(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of the network under ``prefix`` in our key layout.

    Raises:
        ValueError: if tensors of the published layout are missing or left over.
    """
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    tensors.pop(METADATA_TENSOR, None)
    tensors.pop('scaled_fp8', None)
    if POSITIONS_LAYER in tensors:
        tensors[POSITIONS] = tensors.pop(POSITIONS_LAYER)
    return from_published(tensors) if is_published(tensors) else tensors


def is_of_quantised(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor belongs to a quantised layer: its shape may differ, and it has companions."""
    layer, _, kind = name.rpartition('.')
    return kind in _QUANTISED or any(f'{layer}.{other}' in tensors for other in _QUANTISED)


def metadata_tensor(metadata: Mapping[str, Any]) -> Tensor:
    """The tensor that carries ``metadata``."""
    return torch.tensor(list(json.dumps(metadata).encode()), dtype=torch.uint8)


def add_header_metadata(state_dict: dict[str, Tensor], prefix: str, header: Mapping[str, str]) -> None:
    """Put what a safetensors file's header says of the network under ``prefix`` beside its tensors."""
    if METADATA_KEY in header:
        state_dict[prefix + METADATA_TENSOR] = torch.tensor(list(header[METADATA_KEY].encode()), dtype=torch.uint8)


def describe(state_dict: Mapping[str, Tensor], prefix: str, header: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The metadata of the network under ``prefix``, ``architecture`` filled in from the shapes where it is missing.

    Args:
        state_dict: the file's tensors.
        prefix: what stands before the network's.
        header: the file's own metadata, where the host passes it; a tensor of metadata comes first.

    Raises:
        ValueError: if the tensors are not those of a PixNerd network.
    """
    tensor, header = state_dict.get(prefix + METADATA_TENSOR), header or {}
    # On the meta device, so that nothing is copied for the sake of shapes.
    tensors = select({name: tensor.to('meta') for name, tensor in state_dict.items()}, prefix)
    metadata = {}
    if tensor is not None:
        metadata = parse_metadata_tensor(tensor)
    elif METADATA_KEY in header:
        metadata = parse_metadata(header[METADATA_KEY])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {**metadata, 'architecture': find_architecture(shapes, metadata.get('architecture'))}

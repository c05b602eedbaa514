"""How each kind of file names the tensors of networks, and what it holds besides."""

from __future__ import annotations

import json
from typing import Any

import torch

from pixnerd_plugin.checkpoints.architecture import infer_architecture
from pixnerd_plugin.checkpoints.metadata import METADATA_KEY
from pixnerd_plugin.formats.lazy import LazyTensor, Tensors

from .names import METADATA_TENSOR, PROJECTOR, PUBLISHED_PROJECTOR
from .published import ours_to_published

Networks = dict[str, Tensors]
"""Networks under our names by label, as in :class:`~.contents.Contents`; the averaged one first."""


def comfyui_tensors(network: Tensors, metadata: dict[str, Any]) -> Tensors:
    """One network under our names, which the plugin's detection recognises in ComfyUI's own loaders."""
    if infer_architecture({name: tensor.shape for name, tensor in network.items()}) == metadata['architecture']:
        return network
    # ComfyUI's own loaders see tensors only; what those do not tell rides along as one.
    text = json.dumps(metadata).encode()
    return {**network, METADATA_TENSOR: LazyTensor.of(torch.tensor(list(text), dtype=torch.uint8))}


def published_tensors(networks: Networks, projector: Tensors, fill: bool) -> Tensors:
    """Networks under the release's names; with ``fill``, a single network under both of its prefixes."""
    tensors: Tensors = {}
    for label, network in networks.items():
        converted = ours_to_published(network)
        own = 'denoiser.' if label == 'raw' else 'ema_denoiser.'
        for prefix in ('denoiser.', 'ema_denoiser.') if fill and len(networks) == 1 else (own,):
            tensors |= {prefix + name: tensor for name, tensor in converted.items()}
    return tensors | {PUBLISHED_PROJECTOR + name: tensor for name, tensor in projector.items()}


def lightning_content(tensors: Tensors, metadata: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """What the release's trainer reads, from :func:`published_tensors`."""
    return {
        'epoch': 0,
        'global_step': steps or 0,
        # Lightning asks for it before anything else.
        'pytorch-lightning_version': '2.5.0',
        'state_dict': tensors,
        'loops': {},
        'callbacks': {},
        'optimizer_states': [],
        'lr_schedulers': [],
        METADATA_KEY: metadata,
    }


def mmengine_content(
    networks: Networks, projector: Tensors, metadata: dict[str, Any], steps: int | None
) -> dict[str, Any]:
    """What our training starts from (``load_from``).

    As mmengine's EMA hook leaves them, the averages are the state, and the trained weights are beside it.
    """
    state, *others = networks.values()
    content: dict[str, Any] = dict(meta={METADATA_KEY: metadata})
    content['state_dict'] = {f'backbone.{name}': tensor for name, tensor in state.items()}
    content['state_dict'] |= {PROJECTOR + name: tensor for name, tensor in projector.items()}
    for raw in others:
        content['ema_state_dict'] = {'steps': LazyTensor.of(torch.tensor(steps or 0))}
        content['ema_state_dict'] |= {f'module.backbone.{name}': tensor for name, tensor in raw.items()}
    return content

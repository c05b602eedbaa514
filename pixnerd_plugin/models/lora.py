"""Low-rank adapters of a network: trained through PEFT, applied without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.lora import layers_of, read_lora

# The matrices that act on tokens; the field and the modulations stay as they are.
TARGETS = r'(text_)?blocks\.\d+\.(attn\.(qkv|text_kv|proj)|mlp\.(gate_up|down))'


@torch.no_grad()
def apply_lora(net: nn.Module, path: str | Path, strength: float = 1.0) -> None:
    """Add ``strength`` times the adapters of a file to the weights of a network, in place.

    Args:
        net: a backbone; weights are changed in their own dtype, the sum computed in float32.
        path: what :func:`~pixnerd_plugin.checkpoints.lora.read_lora` reads: a file in PEFT's or ComfyUI's naming, or a
            folder that PEFT saved.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another network; nothing is changed then.
    """
    weights = net.state_dict()
    changed = {
        name: adapter.added_to(weights[f'{name}.weight'], strength)
        for name, adapter in read_lora(path, layers_of(weights)).items()
    }
    for name, weight in changed.items():
        net.get_parameter(f'{name}.weight').copy_(weight)


def add_lora(
    net: nn.Module,
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = TARGETS,
) -> dict[str, Any]:
    """Put trainable adapters into a network, in place, and freeze the rest of it.

    The network then loads weights with adapters and without; the latter leave the adapters as they are.

    Args:
        rank: rank of each adapter.
        alpha: an adapter adds ``alpha / rank`` times its product; ``rank`` by default.
        dropout: probability of dropping an adapter's input in training.
        target_modules: as in PEFT, a regular expression that a layer's whole name matches, or ends of names.

    Returns:
        ``dict(rank, alpha)``, for the checkpoint's metadata.

    Raises:
        ValueError: if PEFT is not installed or nothing matches ``target_modules``.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"training with LoRA needs PEFT ({error}); install it: pip install 'pixnerd-plugin[lora]'"
        ) from None
    if rank < 1:
        raise ValueError(f'lora rank={rank} must be at least 1')
    alpha = rank if alpha is None else alpha
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets), net)
    net.register_load_state_dict_pre_hook(_accept_plain_weights)
    return dict(rank=rank, alpha=alpha)


def _accept_plain_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weights of a network without adapters to where PEFT moved them."""
    own = module.state_dict()
    moved = {name.replace('.base_layer.', '.'): name for name in own if '.base_layer.' in name}
    plain = {name: moved[name] for name in moved if prefix + name in state}
    for name, place in plain.items():
        state[prefix + place] = state.pop(prefix + name)
    if plain:
        for name in own:
            if '.lora_' in name:
                state.setdefault(prefix + name, own[name])

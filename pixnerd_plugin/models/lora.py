"""Low-rank adapters of a network, trained through PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

# The matrices that act on tokens; the field and the modulations get no adapters.
TARGETS = r'(text_)?blocks\.\d+\.(attn\.(qkv|text_kv|proj)|mlp\.(gate_up|down))'


def add_lora(
    net: nn.Module,
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = TARGETS,
) -> dict[str, Any]:
    """Add trainable adapters to a network in place, and freeze the rest of it.

    The network then loads weights both with and without adapters; weights without adapters leave these unchanged.

    Args:
        rank: rank of each adapter.
        alpha: an adapter adds ``alpha / rank`` times its product; ``rank`` by default.
        dropout: probability of dropping an adapter's input in training.
        target_modules: as in PEFT: a regular expression for the whole name of a layer, or a list of name endings.

    Returns:
        ``dict(rank, alpha)``, for the checkpoint's metadata.

    Raises:
        ValueError: if PEFT is not installed, or nothing matches ``target_modules``.
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
    """Rename weights without adapters to the names that PEFT gave them."""
    own = module.state_dict()
    moved = {name.replace('.base_layer.', '.'): name for name in own if '.base_layer.' in name}
    plain = {name: moved[name] for name in moved if prefix + name in state}
    for name, place in plain.items():
        state[prefix + place] = state.pop(prefix + name)
    if plain:
        for name in own:
            if '.lora_' in name:
                state.setdefault(prefix + name, own[name])

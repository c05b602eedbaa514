"""Low-rank adapters from files, applied to a network; PEFT is not needed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .layouts.lora import layers_of, read_lora


@torch.no_grad()
def apply_lora(net: nn.Module, path: str | Path, strength: float = 1.0) -> None:
    """Add ``strength`` times the adapters of a file to the weights of a network, in place.

    Args:
        net: a backbone; weights are changed in their own dtype, the sum computed in float32.
        path: what :func:`~.layouts.lora.read_lora` reads: a file in PEFT's or ComfyUI's naming, or a
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

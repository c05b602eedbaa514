"""The layers with weights that networks use, unless a host such as ComfyUI supplies its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Embedding, LayerNorm, Linear

from pixnerd_plugin.functional.norms import rms_norm

__all__ = ['Embedding', 'LayerNorm', 'Linear', 'RMSNorm']


class RMSNorm(nn.RMSNorm):
    """``h / sqrt(mean(h^2) + eps) * weight`` over the last dimension, in the dtype of ``h``."""

    def forward(self, h: Tensor) -> Tensor:
        weight = self.weight.to(h.dtype)
        if not _is_autocast(h.device.type):
            return rms_norm(h, weight, self.eps)
        # A GPU's fused kernel takes a single dtype and sums in float32; autocast would run all of it in float32.
        with torch.autocast(h.device.type, enabled=False):
            return rms_norm(h, weight, self.eps)


def _is_autocast(device: str) -> bool:
    # On the device 'meta', is_autocast_enabled raises.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)

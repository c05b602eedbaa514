"""The layers with weights that a network is made of unless a host (ComfyUI) supplies its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import Embedding, Linear

from .normalize import rms_norm

__all__ = ['Embedding', 'Linear', 'RMSNorm']


class RMSNorm(nn.RMSNorm):
    """``h / sqrt(mean(h^2) + eps) * weight`` over the last dimension, in the dtype of ``h``."""

    def forward(self, h: Tensor) -> Tensor:
        # In one dtype, which under autocast keeps it on the fused kernel of a GPU.
        return rms_norm(h, self.weight.to(h.dtype), self.eps)

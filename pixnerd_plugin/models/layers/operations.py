"""The layers with weights that a network is made of unless a host (ComfyUI) supplies its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Embedding, Linear

__all__ = ['Embedding', 'Linear', 'RMSNorm']


class RMSNorm(nn.RMSNorm):
    """``h / sqrt(mean(h^2) + eps) * weight`` over the last dimension, in the dtype of ``h``."""

    def forward(self, h: Tensor) -> Tensor:
        # In one dtype, which under autocast keeps it on the fused kernel of a GPU.
        weight = self.weight.to(h.dtype)
        eager_cpu = h.device.type == 'cpu' and h.dtype == torch.float32 and not torch.compiler.is_compiling()
        if torch.is_grad_enabled() or not eager_cpu:
            return F.rms_norm(h, self.normalized_shape, weight, self.eps)
        # Eager torch composes it of passes over h on a CPU; a vector norm is one pass and writes nothing of that size.
        mean_square = torch.linalg.vector_norm(h, dim=-1, keepdim=True).square() / h.shape[-1]
        return (h * torch.rsqrt(mean_square + self.eps)).mul_(weight)

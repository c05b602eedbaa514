"""Normalisations; RMSNorm with a hand-written gradient, which passes over memory less often than eager torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(h: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """``h / sqrt(mean(h^2) + eps) * weight`` over the last dimension; weight ``(D,)`` in the dtype of ``h``."""
    # GPUs and the compiler have a fused kernel.
    if eps is None or h.device.type != 'cpu' or is_transformed():
        return F.rms_norm(h, weight.shape, weight, eps)
    if h.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
        # In float32 once, where torch turns half precision to and fro.
        wide = h.float()
        return wide.mul_(_reciprocal_rms(wide, eps)).mul_(weight).to(h.dtype)
    if h.dtype != torch.float32:
        return F.rms_norm(h, weight.shape, weight, eps)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(h, weight, eps)
    return (h * _reciprocal_rms(h, eps)).mul_(weight)


def unit_columns(w: Tensor) -> Tensor:
    """Scale the columns of ``w (..., in, out)`` to unit L2 norm (paper Eq. 10)."""
    if w.device.type != 'cpu':
        # Summed in float32 whatever the dtype; 1e-12 is nothing in float16.
        norm = torch.linalg.vector_norm(w, dim=-2, keepdim=True)
        return w / norm.clamp_min(max(1e-12, torch.finfo(w.dtype).tiny))
    # On a CPU, vector_norm over any but the last dimension is several times slower.
    exact = torch.promote_types(w.dtype, torch.float32)
    return w * w.square().sum(dim=-2, keepdim=True, dtype=exact).clamp_min(1e-24).rsqrt().to(w.dtype)


def is_transformed() -> bool:
    """Whether torch.compile, torch.func or forward-mode differentiation follows, which need plain operations."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _reciprocal_rms(h: Tensor, eps: float) -> Tensor:
    # vector_norm is a single pass and allocates nothing as large as h.
    mean_square = torch.linalg.vector_norm(h, dim=-1, keepdim=True).square() / h.shape[-1]
    return torch.rsqrt(mean_square + eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _reciprocal_rms(h, eps)
        ctx.save_for_backward(h, weight, scale)
        return (h * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        h, weight, scale = ctx.saved_tensors
        product = (grad * h).flatten(0, -2)
        of_h = of_weight = None
        if ctx.needs_input_grad[0]:
            along = (product @ weight).view_as(scale)
            of_h = (grad * weight).mul_(scale)
            of_h.addcmul_(h, along * scale.pow(3) / -h.shape[-1])
        if ctx.needs_input_grad[1]:
            of_weight = product.t() @ scale.flatten()
        return of_h, of_weight, None

"""The transformer block: attention and SwiGLU, each under adaptive layer normalisation (paper Eqs. 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, AttentionFunction, Rotate, Text


class Modulation(NamedTuple):
    """``h + gate * f(norm(h) * scale + shift)``; each part is ``(B, 1, D)``.

    ``scale`` is 1 plus the paper's.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def apply(self, h: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the modulated ``branch`` of ``h (B, L, D)`` to it."""
        modulated = torch.addcmul(self.shift, norm(h), self.scale)
        return torch.addcmul(h, self.gate, branch(modulated))


def join_modulations(parts: Iterable[Tensor]) -> Tensor:
    """Join what :meth:`TransformerBlock.modulate` gives for each block: ``(B, 6, D)`` to ``(B, depth, 6, D)``.

    1 is added to the scales here, for all blocks at once.
    """
    joined = torch.stack(list(parts), dim=1)
    joined[:, :, 1::3].add_(1)
    return joined


class SwiGLU(nn.Module):
    """``down(silu(gate) * up)``; one product gives gate and up, in that order."""

    def __init__(self, dim: int, hidden: int, operations: Any, **factory: Any):
        super().__init__()
        self.gate_up = operations.Linear(dim, 2 * hidden, bias=False, **factory)
        self.down = operations.Linear(hidden, dim, bias=False, **factory)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class TransformerBlock(nn.Module):
    """RMSNorm, attention, RMSNorm, SwiGLU. One linear layer on the condition, without activation, gives the modulation.

    The caller passes its part of :func:`join_modulations` to ``forward``: it depends on time and condition, not on
    tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_hidden: int,
        joint: bool,
        operations: Any,
        attention: AttentionFunction,
        **factory: Any,
    ):
        super().__init__()
        self.modulation = operations.Linear(dim, 6 * dim, **factory)
        self.norm1 = operations.RMSNorm(dim, eps=1e-6, **factory)
        self.attn = Attention(dim, num_heads, joint, operations, attention, **factory)
        self.norm2 = operations.RMSNorm(dim, eps=1e-6, **factory)
        self.mlp = SwiGLU(dim, mlp_hidden, operations, **factory)

    def modulate(self, c: Tensor) -> Tensor:
        """Map the condition ``c (B, D)`` to shift, scale and gate of attention, then of the MLP, ``(B, 6, D)``."""
        return self.modulation(c).unflatten(-1, (6, -1))

    def forward(
        self,
        h: Tensor,
        modulation: Tensor,
        rotate: Rotate | None = None,
        text: Text | None = None,
        attention: AttentionFunction | None = None,
    ) -> Tensor:
        """Map tokens ``h (B, L, D)`` to ``(B, L, D)``; a joint block attends to ``text`` too.

        ``attention`` replaces the block's own function in this call.
        """
        parts = modulation.unsqueeze(2).unbind(1)
        for_attention, for_mlp = Modulation(*parts[:3]), Modulation(*parts[3:])
        h = for_attention.apply(h, self.norm1, lambda n: self.attn(n, rotate, text, attention))
        return for_mlp.apply(h, self.norm2, self.mlp)

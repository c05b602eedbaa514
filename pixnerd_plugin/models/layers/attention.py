"""Self-attention with normalised queries and keys, optionally over a text as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q, k, v) -> out``, all ``(B, num_heads, tokens, head_dim)``, with softmax scale ``head_dim ** -0.5``."""

Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(q, k) -> (q, k)``, turned by the positions of the tokens."""

Text = Tensor | tuple[Tensor, Tensor]
"""Text tokens ``(B, N, D)``, or their keys and values, each ``(B, num_heads, N, head_dim)``."""


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The default :data:`AttentionFunction`: torch's own kernel."""
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head attention, with an RMSNorm on q and k of each head (weights shared by heads) before the rotation.

    Args:
        dim: width of the tokens, a multiple of ``num_heads``.
        num_heads: number of heads; ``dim / num_heads`` must be a multiple of 4 for the 2-D rotation.
        joint: also attend to a text, whose keys and values have their own projection, the same k-norm and no rotation.
        operations: namespace of the layers with weights (``Linear``, ``RMSNorm``).
        attention: the attention function.
        factory: ``dtype`` and ``device`` of the weights.
    """

    def __init__(
        self, dim: int, num_heads: int, joint: bool, operations: Any, attention: AttentionFunction, **factory: Any
    ):
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.qkv = operations.Linear(dim, 3 * dim, bias=False, **factory)
        if joint:
            self.text_kv = operations.Linear(dim, 2 * dim, bias=False, **factory)
        self.q_norm = operations.RMSNorm(dim // num_heads, eps=1e-6, **factory)
        self.k_norm = operations.RMSNorm(dim // num_heads, eps=1e-6, **factory)
        self.proj = operations.Linear(dim, dim, **factory)

    def forward(
        self,
        h: Tensor,
        rotate: Rotate | None = None,
        text: Text | None = None,
        attention: AttentionFunction | None = None,
    ) -> Tensor:
        """Map ``h (B, L, D)`` to ``(B, L, D)``; ``rotate`` turns q and k, and ``text`` is for joint attention.

        ``attention`` replaces the layer's own function in this call.
        """
        q, k, v = rearrange(self.qkv(h), 'b l (three head d) -> three b head l d', three=3, head=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotate is not None:
            q, k = rotate(q, k)
        if text is not None:
            text_k, text_v = text if isinstance(text, tuple) else self.text_keys_values(text)
            k, v = torch.cat((k, text_k), dim=2), torch.cat((v, text_v), dim=2)
        # Under autocast the norms may leave q and k in float32 beside a bf16 v.
        out = (attention or self.attention)(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(rearrange(out, 'b head l d -> b l (head d)'))

    def text_keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised keys and the values of ``text (B, N, D)``, each ``(B, num_heads, N, head_dim)``."""
        k, v = rearrange(self.text_kv(text), 'b n (two head d) -> two b head n d', two=2, head=self.num_heads)
        return self.k_norm(k), v

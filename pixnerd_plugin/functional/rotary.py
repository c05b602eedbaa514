"""Two-dimensional rotary position embedding on real cosine and sine tables."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(x: Tensor, y: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return ``cos, sin`` for :func:`rotate`, each ``(tokens, head_dim)``.

    Channel pair ``2j`` turns by ``x f_j`` and pair ``2j+1`` by ``y f_j``; the sines of even channels are negated.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 4, dtype=torch.float32, device=x.device) / head_dim)
    angles = torch.stack((torch.outer(x, frequencies), torch.outer(y, frequencies)), dim=-1).flatten(1)
    sin = angles.sin()
    return angles.cos().repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(1)


def rotate(q: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each channel pair (2m, 2m+1) of ``q (..., tokens, head_dim)`` by the angles of ``table``; float32 inside."""
    cos, sin = table
    swapped = q.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(q * cos, swapped, sin).to(q.dtype)

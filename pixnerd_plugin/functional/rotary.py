"""Two-dimensional rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from .positions import token_positions
from .tables import kept


def rotary_table(x: Tensor, y: Tensor, head_dim: int, theta: float = 10000.0) -> Tensor:
    """Return cosines and sines for :func:`rotate`, ``(tokens, head_dim / 2, 2)``.

    Channel pair ``2j`` turns by ``x f_j`` and pair ``2j+1`` by ``y f_j``.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 4, dtype=torch.float32, device=x.device) / head_dim)
    angles = torch.stack((torch.outer(x, frequencies), torch.outer(y, frequencies)), dim=-1).flatten(1)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


@kept
def rotary_table_of_grid(grid: tuple[int, int], rule: str, head_dim: int, device: torch.device) -> Tensor:
    """The table of a grid of tokens under a position rule (see :func:`~.positions.token_positions`)."""
    return rotary_table(*token_positions(grid, rule, device), head_dim)


def rotate(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each channel pair (2m, 2m+1) of ``q`` and ``k (..., tokens, head_dim)`` by the angles of ``table``."""
    if q.device.type == 'cpu':
        return _turn(q, table), _turn(k, table)
    # A GPU waits for launches rather than for memory.
    q, k = _turn(torch.stack((q, k)), table)
    return q, k


def _turn(q: Tensor, table: Tensor) -> Tensor:
    pairs = q.unflatten(-1, (-1, 2))
    if q.dtype != torch.float64:
        pairs = pairs.float()
    # Compilers, and some devices, have no complex numbers.
    if q.device.type in ('cpu', 'cuda', 'meta') and not torch.compiler.is_compiling():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    else:
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return turned.flatten(-2).to(q.dtype)

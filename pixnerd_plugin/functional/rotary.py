"""Two-dimensional rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from .norms import is_transformed
from .positions import token_positions
from .tables import kept


def rotary_table(x: Tensor, y: Tensor, head_dim: int, theta: float = 10000.0) -> Tensor:
    """Return what :func:`rotate` multiplies pairs of channels by, ``(tokens, head_dim / 2, 2, 2)``.

    The first channel of a pair times the first row, ``(cos, sin)``, and the second times the other, ``(-sin, cos)``,
    add up to the turned pair. Channel pair ``2j`` turns by ``x f_j`` and pair ``2j+1`` by ``y f_j``.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 4, dtype=torch.float32, device=x.device) / head_dim)
    angles = torch.stack((torch.outer(x, frequencies), torch.outer(y, frequencies)), dim=-1).flatten(1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((cos, sin, -sin, cos), dim=-1).unflatten(-1, (2, 2))


@kept
def rotary_table_of_grid(grid: tuple[int, int], rule: str, head_dim: int, device: torch.device) -> Tensor:
    """The table of a grid of tokens under a position rule (see :func:`~.positions.token_positions`)."""
    return rotary_table(*token_positions(grid, rule, device), head_dim)


def rotate(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each channel pair (2m, 2m+1) of ``q`` and ``k (..., tokens, head_dim)`` by the angles of ``table``."""
    # One pass on a CPU; compilers, and some devices, have no complex numbers.
    if q.device.type == 'cpu' and not torch.compiler.is_compiling():
        return _turn_complex(q, table), _turn_complex(k, table)
    # A GPU waits for launches rather than for memory.
    q, k = _turn(torch.stack((q, k)), table)
    return q, k


def _turn_complex(q: Tensor, table: Tensor) -> Tensor:
    pairs = q.unflatten(-1, (-1, 2))
    if q.dtype != torch.float64:
        pairs = pairs.float()
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(table[..., 0, :])
    return torch.view_as_real(turned).flatten(-2).to(q.dtype)


def _turn(q: Tensor, table: Tensor) -> Tensor:
    """In three kernels or, without derivatives, in two; all compute in the table's float32."""
    pairs = q.unflatten(-1, (-1, 2))
    of_first, of_second = table.unbind(-2)
    product = pairs[..., :1] * of_first
    if torch.is_grad_enabled() or is_transformed():
        return torch.addcmul(product, pairs[..., 1:], of_second).flatten(-2).to(q.dtype)
    turned = torch.empty_like(pairs)
    torch.addcmul(product, pairs[..., 1:], of_second, out=turned)
    return turned.flatten(-2)

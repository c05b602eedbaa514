"""Two-dimensional rotary position embedding on real cosine and sine tables."""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED_SPAN = 16.0
"""Range of the token positions in the class-conditional release, whatever the grid."""

POSITION_RULES = ('fixed_span', 'swapped_grid', 'grid')


def evenly_spaced(end: float, num: int, device: torch.device | None = None) -> Tensor:
    """``torch.linspace(0, end, num)``, which a compiler would make anew for each ``num``."""
    if not torch.compiler.is_compiling():
        return torch.linspace(0, end, num, device=device)
    index = torch.arange(num, device=device)
    step = end / max(num - 1, 1)
    # From both ends, as torch does it, so that the last one is ``end`` to the bit.
    return torch.where(2 * index < num, index * step, end - (num - 1 - index) * step)


def token_positions(grid: tuple[int, int], rule: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the positions ``x, y``, each ``(rows * columns,)``, of a row-major grid of tokens.

    Args:
        grid: ``(rows, columns)``.
        rule: ``'fixed_span'``, both axes from 0 to 16 (published class-conditional weights); ``'swapped_grid'``, x
            from 0 to rows and y from 0 to columns (published text weights: the release swaps the two, which only grids
            that are not square feel); ``'grid'``, x to columns and y to rows.
    """
    rows, columns = grid
    if rule == 'fixed_span':
        x_end, y_end = PUBLISHED_SPAN, PUBLISHED_SPAN
    elif rule == 'swapped_grid':
        x_end, y_end = float(rows), float(columns)
    elif rule == 'grid':
        x_end, y_end = float(columns), float(rows)
    else:
        raise ValueError(f'position_rule={rule!r} is not known; use one of {", ".join(POSITION_RULES)}')
    y, x = torch.meshgrid(evenly_spaced(y_end, rows, device), evenly_spaced(x_end, columns, device), indexing='ij')
    return x.flatten(), y.flatten()


def rotary_table(x: Tensor, y: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return ``cos, sin`` for :func:`rotate`, each ``(tokens, head_dim)``.

    Channel pair 2j turns by ``x f_j``, pair 2j+1 by ``y f_j``; sines of even channels are negative.
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

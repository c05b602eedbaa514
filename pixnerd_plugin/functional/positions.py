"""Positions of tokens on their grid, and of pixels in their patch."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import kept

PUBLISHED_SPAN = 16.0
"""Range of the token positions in the class-conditional release, for every grid size."""

FIXED_STEP = 5.0
"""Distance of neighbouring tokens under ``'fixed_step'``: about that of ``'fixed_span'`` on a grid of 4x4."""

POSITION_RULES = ('fixed_span', 'swapped_grid', 'grid', 'fixed_step')
ALIGNMENTS = ('corners', 'centers')


def evenly_spaced(end: float, num: int, device: torch.device | None = None) -> Tensor:
    """``torch.linspace(0, end, num)``, in a form that does not make the compiler recompile for each ``num``."""
    if not torch.compiler.is_compiling():
        return torch.linspace(0, end, num, device=device)
    index = torch.arange(num, device=device)
    step = end / max(num - 1, 1)
    # From both ends, as torch does, so that the last value is exactly ``end``.
    return torch.where(2 * index < num, index * step, end - (num - 1 - index) * step)


@kept
def token_positions(grid: tuple[int, int], rule: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the positions ``x, y``, each ``(rows * columns,)``, of a row-major grid of tokens.

    Args:
        grid: ``(rows, columns)``.
        rule: ``'fixed_span'``: both axes from 0 to 16 (published class-conditional weights). ``'swapped_grid'``: x
            from 0 to rows and y from 0 to columns (published text weights; the release swaps the two, which matters
            only on grids that are not square). ``'grid'``: x from 0 to columns and y from 0 to rows. ``'fixed_step'``:
            5 from each token to the next on both axes, the same on every grid; for small grids of several shapes.

    Raises:
        ValueError: if the rule is unknown.
    """
    rows, columns = grid
    if rule == 'fixed_span':
        x_end, y_end = PUBLISHED_SPAN, PUBLISHED_SPAN
    elif rule == 'swapped_grid':
        x_end, y_end = float(rows), float(columns)
    elif rule == 'grid':
        x_end, y_end = float(columns), float(rows)
    elif rule == 'fixed_step':
        x_end, y_end = FIXED_STEP * (columns - 1), FIXED_STEP * (rows - 1)
    else:
        raise ValueError(f'position_rule={rule!r} is not known; use one of {", ".join(POSITION_RULES)}')
    y, x = torch.meshgrid(evenly_spaced(y_end, rows, device), evenly_spaced(x_end, columns, device), indexing='ij')
    return x.flatten(), y.flatten()


def pixel_positions(
    size: int,
    patch_size: int,
    alignment: str,
    device: torch.device | None = None,
    *,
    start: int = 0,
    num: int | None = None,
) -> Tensor:
    """Return the positions of the ``size`` pixels along one side of a patch of ``patch_size`` base pixels.

    ``'corners'`` (published) always spreads them from 0 to 1: with more pixels, a patch is stretched and the gap to its
    neighbours closes. ``'centers'`` keeps every pixel at its place in the picture: fine pixel ``j`` is at
    ``((j + 1/2) P / size - 1/2) / (P - 1)``. At ``size == patch_size`` the two agree.

    ``start`` and ``num`` select ``num`` pixels from ``start`` on, at the same spacing; they may lie outside the patch.
    """
    if num is None:
        num = size - start
    if alignment == 'corners':
        inside = evenly_spaced(1, size, device)
        if start == 0 and num == size:
            return inside
        index = torch.arange(start, start + num, device=device)
        nearest = index.clamp(0, size - 1)
        return inside[nearest] + (index - nearest) / max(size - 1, 1)
    centers = (torch.arange(start, start + num, dtype=torch.float32, device=device) + 0.5) * (patch_size / size) - 0.5
    return centers / max(patch_size - 1, 1)

"""A measure of seams: the steps between pixels at patch borders, relative to those inside patches."""

from __future__ import annotations

import torch
from torch import Tensor


def border_steps(images: Tensor, grid: tuple[int, int]) -> tuple[float, float]:
    """Mean absolute difference of neighbouring pixels across patch borders, and inside patches.

    Both are the mean of the two axes. A step is across a border if the centres of its two pixels lie in two patches,
    so that sides need not be multiples of the grid.

    Args:
        images: pictures ``(B, C, H, W)`` in [-1, 1]; values beyond are cut off, as in a picture file.
        grid: ``(rows, columns)`` of patches.

    Raises:
        ValueError: if along an axis there are no borders, or no steps inside a patch.
    """
    across, inside = [], []
    for axis, patches in zip((2, 3), grid, strict=True):
        size = images.shape[axis]
        if not 1 < patches < size:
            raise ValueError(f'seams need borders and steps inside patches: {patches} patches along {size} pixels')
        steps = images.clamp(-1, 1).diff(dim=axis).abs().movedim(axis, -1)
        patch = ((2 * torch.arange(size, device=images.device) + 1) * patches).div(2 * size, rounding_mode='floor')
        is_border = patch.diff() > 0
        across.append(steps[..., is_border].mean().item())
        inside.append(steps[..., ~is_border].mean().item())
    return sum(across) / 2, sum(inside) / 2


def seam_ratio(images: Tensor, grid: tuple[int, int]) -> float:
    """Steps across patch borders as a multiple of the steps inside patches (see :func:`border_steps`).

    It is 1 for a picture that does not depend on the grid. A motif with the smallest steps in the middle of patches
    raises it without any seam, so compare it with that of originals. NaN if there are no steps at all.
    """
    across, inside = border_steps(images, grid)
    if inside == 0:
        return float('nan') if across == 0 else float('inf')
    return across / inside

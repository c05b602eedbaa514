"""Pictures of any size, padded to whole patches as core's own models do it. Needs nothing of ComfyUI."""

from __future__ import annotations

import torch
from torch import Tensor

Size = tuple[int, int]


def area_grid(size: Size, picture: Size, token_grid: Size | None) -> Size | None:
    """The part of a fixed grid of tokens that falls to an area of ``size`` of the whole ``picture``, at least 1 x 1."""
    if token_grid is None:
        return None
    rows, columns = (
        max(1, round(count * side / whole)) for count, side, whole in zip(token_grid, size, picture, strict=True)
    )
    return rows, columns


def grid_of(size: Size, patch_size: int, token_grid: Size | None) -> Size:
    """Rows and columns of tokens of a picture once it is padded: the fixed grid, or one a patch."""
    return token_grid or (-(-size[0] // patch_size), -(-size[1] // patch_size))


def padded_size(size: Size, patch_size: int, token_grid: Size | None) -> Size:
    """The least size from ``size`` on that is a whole number of pixels for each token."""
    step = token_grid or (patch_size, patch_size)
    return -(-size[0] // step[0]) * step[0], -(-size[1] // step[1]) * step[1]


def pad(x: Tensor, size: Size) -> Tensor:
    """``x (B, C, h, w)`` repeated to ``size``, however small it is: noise goes on as noise."""
    for dim, side in zip((2, 3), size, strict=True):
        if x.shape[dim] != side:
            x = x.index_select(dim, torch.arange(side, device=x.device) % x.shape[dim])
    return x

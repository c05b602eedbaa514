"""Images to patches of pixels and back. Patches are in row-major order, and so are the pixels in a patch."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def to_patches(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to ``(B, rows * columns, H / rows, W / columns, C)``."""
    rows, columns = grid
    return rearrange(image, 'b c (r h) (q w) -> b (r q) h w c', r=rows, q=columns)


def from_patches(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_patches`."""
    rows, columns = grid
    return rearrange(patches, 'b (r q) h w c -> b c (r h) (q w)', r=rows, q=columns)


def grid_of_tokens(
    size: tuple[int, int], patch_size: int, token_grid: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Rows and columns of tokens for a picture of ``size`` pixels: ``token_grid`` if given, else one token a patch.

    Raises:
        ValueError: if the sides of the picture are not multiples of the patch or the grid; the message names them.
    """
    height, width = size
    if token_grid is None:
        if height % patch_size or width % patch_size:
            raise ValueError(
                f'the picture is {height}x{width}, and its sides must be multiples of patch_size={patch_size}'
            )
        return height // patch_size, width // patch_size
    rows, columns = token_grid
    if rows < 1 or columns < 1:
        raise ValueError(f'token_grid={tuple(token_grid)} must be (rows, columns), each at least 1')
    if height % rows or width % columns:
        raise ValueError(
            f'the picture is {height}x{width}, and its sides must be multiples of the token grid {rows}x{columns}'
        )
    return rows, columns


def resample(image: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Resize ``(B, C, H, W)`` to what the transformer reads; nearest neighbour, so that noise keeps its variance."""
    size = (grid[0] * patch_size, grid[1] * patch_size)
    return image if image.shape[2:] == size else F.interpolate(image, size=size, mode='nearest')

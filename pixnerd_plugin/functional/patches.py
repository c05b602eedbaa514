"""Images to patches of pixels and back. Patches are in row-major order, and so are the pixels in a patch."""

from __future__ import annotations

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

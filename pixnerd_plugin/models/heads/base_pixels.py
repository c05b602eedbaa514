"""What heads share that know the ``P x P`` pixels of a patch and no others."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def require_base_pixels(head: Any, pixels: Tensor, positions: tuple[Tensor, Tensor] | None) -> tuple[int, int]:
    """Return the height and width of the patches in ``pixels (B, L, h, w, C)``.

    Raises:
        ValueError: if they are not ``patch_size`` on both sides, or ``positions`` are given.
    """
    height, width = pixels.shape[2:4]
    if positions is not None or (height, width) != (head.patch_size, head.patch_size):
        raise ValueError(
            f'{type(head).__name__} gives {head.patch_size}x{head.patch_size} pixels a patch, not {height}x{width}; '
            'use NeuralFieldHead for others'
        )
    return height, width

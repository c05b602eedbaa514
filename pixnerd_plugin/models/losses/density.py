"""Training the field between base pixels: the usual number of pixels, drawn from a larger original."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixnerd_plugin.functional.noise import continuous_noise


def draw_fine_pixels(
    images: Tensor, noise: Tensor, patch_size: int, overlap: float = 0.0
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Draw a density and, for each base row and column of a patch, one of the fine rows and columns that it covers.

    The choice is the same in every patch, so that all patches share the field's coordinates.

    Args:
        images: originals ``(B, C, k H, k W)``.
        noise: base noise ``(B, C, H, W)``.
        patch_size: side ``P`` of a patch in base pixels.
        overlap: draw from this many base pixels more on each side of a patch, spread over them evenly. Beyond the edge
            of the picture is what is at the edge.

    Returns:
        The drawn pixels ``(B, C, H, W)``; the base noise interpolated at them, each value N(0, 1); and their row and
        column positions in a patch, each ``(P,)``.
    """
    height, width = noise.shape[2:]
    rows, columns = height // patch_size, width // patch_size
    # The fine picture has between P and k P pixels along a patch.
    fine = int(torch.randint(patch_size, patch_size * images.shape[2] // height + 1, ()))
    if fine * rows != images.shape[2]:
        images = F.interpolate(images, size=(rows * fine, columns * fine), mode='bilinear', antialias=True)
    lines = torch.stack([_draw_lines(patch_size, fine, overlap) for _ in range(2)])
    # Pinned, so that the copy does not wait for the GPU.
    lines = lines.pin_memory() if images.is_cuda else lines
    y, x = lines.to(images.device, non_blocking=True)
    at_y, at_x = (((line + 0.5) * (patch_size / fine) - 0.5) for line in (y, x))
    positions = at_y / max(patch_size - 1, 1), at_x / max(patch_size - 1, 1)
    rows_drawn = _in_all_patches(y, rows, fine).clamp(0, images.shape[2] - 1)
    columns_drawn = _in_all_patches(x, columns, fine).clamp(0, images.shape[3] - 1)
    target = images[:, :, rows_drawn][..., columns_drawn]
    fine_noise = continuous_noise(
        noise, _in_all_patches(at_y, rows, patch_size), _in_all_patches(at_x, columns, patch_size)
    )
    return target, fine_noise, positions


def _draw_lines(patch_size: int, fine: int, overlap: float) -> Tensor:
    """``patch_size`` of the ``fine`` lines of a patch, and of those up to ``overlap`` outside, evenly and at random."""
    at = (torch.arange(patch_size) + torch.rand(patch_size)) * (1 + 2 * overlap / patch_size) - overlap
    margin = int(overlap * fine / patch_size + 0.5)  # those whose centres are at most so far outside
    return (at * (fine / patch_size)).floor().long().clamp(-margin, fine - 1 + margin)


def _in_all_patches(line: Tensor, patches: int, step: int) -> Tensor:
    """The same lines in each patch along an axis, ``step`` apart."""
    return (torch.arange(patches, device=line.device)[:, None] * step + line).flatten()

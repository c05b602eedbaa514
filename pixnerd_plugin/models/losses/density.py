"""Training the field between base pixels: the usual number of pixels, drawn from a larger original."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixnerd_plugin.functional.noise import continuous_noise
from pixnerd_plugin.functional.positions import pixel_positions


def draw_fine_pixels(images: Tensor, noise: Tensor, patch_size: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Draw a density and, for each base row and column of a patch, one of the fine rows and columns that it covers.

    The choice is the same in every patch, so that all patches share the field's coordinates.

    Args:
        images: originals ``(B, C, k H, k W)``.
        noise: base noise ``(B, C, H, W)``.
        patch_size: side ``P`` of a patch in base pixels.

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
    lines = torch.stack([_draw_lines(patch_size, fine) for _ in range(2)])
    # Pinned, so that the copy does not wait for the GPU.
    lines = lines.pin_memory() if images.is_cuda else lines
    y, x = lines.to(images.device, non_blocking=True)
    positions = pixel_positions(fine, patch_size, 'centers', images.device)
    target = images[:, :, _in_all_patches(y, rows, fine)][..., _in_all_patches(x, columns, fine)]
    at_y = _in_all_patches(positions[y] * (patch_size - 1), rows, patch_size)
    at_x = _in_all_patches(positions[x] * (patch_size - 1), columns, patch_size)
    return target, continuous_noise(noise, at_y, at_x), (positions[y], positions[x])


def _draw_lines(patch_size: int, fine: int) -> Tensor:
    """For each of ``patch_size`` base lines, the index of one of the ``fine`` lines that it covers, at random."""
    return ((torch.arange(patch_size) + torch.rand(patch_size)) * (fine / patch_size)).long().clamp(max=fine - 1)


def _in_all_patches(line: Tensor, patches: int, step: int) -> Tensor:
    """The same lines in each patch along an axis, ``step`` apart."""
    return (torch.arange(patches, device=line.device)[:, None] * step + line).flatten()

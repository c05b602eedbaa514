"""The discrete cosine transform of 8x8 blocks, and the visibility of its frequencies according to JPEG."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BLOCK = 8

# Annex K of the JPEG standard (ITU-T T.81), tables K.1 and K.2, row by row.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
)  # fmt: skip

# RGB to full-range JPEG YCbCr, without the offset, which cancels in differences of images.
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


def rgb_to_ycbcr(images: Tensor) -> Tensor:
    """Map differences of RGB images ``(B, 3, H, W)`` to those of full-range JPEG YCbCr, same shape."""
    return torch.einsum('yc,bchw->byhw', images.new_tensor(_YCBCR), images)


def dct_matrix(device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II of 8 values as a matrix ``(8, 8)`` with one row per frequency."""
    frequency, place = torch.arange(BLOCK, device=device)[:, None], torch.arange(BLOCK, device=device) + 0.5
    matrix = (2 / BLOCK) ** 0.5 * torch.cos(math.pi / BLOCK * frequency * place)
    return torch.cat((matrix[:1] / 2**0.5, matrix[1:]))


def block_dct(images: Tensor) -> Tensor:
    """Transform each 8x8 block of ``images (B, C, H, W)`` to ``(B, C, blocks, 8, 8)``, vertical frequencies first.

    Sides that are not multiples of 8 are padded at the end by reflection.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % BLOCK, 0, -height % BLOCK), mode='reflect')
    blocks = rearrange(padded, 'b c (r h) (q w) -> b c (r q) h w', h=BLOCK, w=BLOCK)
    matrix = dct_matrix(images.device).to(images.dtype)
    return matrix @ blocks @ matrix.T


def visibility(quality: int) -> Tensor:
    """Visibility of each DCT frequency of Y, Cb and Cr, ``(3, 8, 8)``, each with mean 1 (DeCo, arXiv 2511.19365).

    ``(mean(T) / T) / mean(mean(T) / T)``, where ``T`` are the JPEG tables scaled to ``quality``, 1 to 100.

    Raises:
        ValueError: if ``quality`` is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f'quality={quality} must be from 1 to 100')
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    tables = torch.tensor((_LUMINANCE, _CHROMINANCE, _CHROMINANCE), dtype=torch.float64).view(3, BLOCK, BLOCK)
    scaled = ((tables * scale + 50) / 100).floor().clamp(1, 255)
    weights = scaled.mean((1, 2), keepdim=True) / scaled
    return (weights / weights.mean((1, 2), keepdim=True)).float()

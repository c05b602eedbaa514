"""Coordinates of the pixels in a patch, as the features that the neural field reads.

A position of 0 is the centre of the patch's first base pixel, 1 that of its last, as in the published weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .positions import pixel_positions
from .tables import kept

COORDINATES = ('dct', 'cosine', 'sincos')

# The published text variant scales positions to 0..16 before its cosines.
COSINE_SPAN = 16.0


def num_features(kind: str, num_frequencies: int) -> int:
    """Number of features that ``coordinate_features`` returns."""
    return {'dct': num_frequencies**2, 'cosine': num_frequencies**2, 'sincos': 4 * num_frequencies}[kind]


@kept
def features_of_patch(
    kind: str, num_frequencies: int, size: tuple[int, int], patch_size: int, alignment: str, device: torch.device
) -> Tensor:
    """:func:`coordinate_features` of ``h x w`` pixels spread over a patch (see :func:`~.positions.pixel_positions`)."""
    y, x = (pixel_positions(side, patch_size, alignment, device) for side in size)
    return coordinate_features(kind, num_frequencies, y, x)


def coordinate_features(kind: str, num_frequencies: int, y: Tensor, x: Tensor) -> Tensor:
    """Return the features ``(rows, columns, F)`` of the pixels at row positions ``y`` and column positions ``x``.

    - ``'dct'`` (paper Eq. 12, as released): ``cos(pi x k_a) cos(pi y k_b) / (1 + k_a k_b)``, ``k = linspace(0, K, K)``,
      ``a`` slow and ``b`` fast; ``F = K ** 2``.
    - ``'cosine'`` (released text model): ``cos(16 x f_j), cos(16 y f_j)`` interleaved, ``f_j = 10000 ** (-2 j / F)``;
      ``F = K ** 2``, as wide as the DCT's.
    - ``'sincos'`` (paper Eq. 7): ``sin(2^l pi x), cos(2^l pi x), sin(2^l pi y), cos(2^l pi y)``, ``l < K``;
      ``F = 4 K``.
    """
    size = (len(y), len(x))
    if kind == 'dct':
        k = torch.linspace(0, num_frequencies, num_frequencies, device=x.device)
        along_x = torch.outer(x, k * math.pi).cos()
        along_y = torch.outer(y, k * math.pi).cos()
        damping = 1 / (1 + torch.outer(k, k))
        return (along_x[None, :, :, None] * along_y[:, None, None, :] * damping).flatten(2)
    if kind == 'cosine':
        width = num_features(kind, num_frequencies)
        f = COSINE_SPAN * 10000 ** -(torch.arange(0, width, 2, dtype=torch.float32, device=x.device) / width)
        along_x = torch.outer(x, f).cos()[None, :].expand(*size, -1)
        along_y = torch.outer(y, f).cos()[:, None].expand(*size, -1)
        return torch.stack((along_x, along_y), dim=-1).flatten(2)
    f = math.pi * 2.0 ** torch.arange(num_frequencies, device=x.device)
    waves_x, waves_y = torch.outer(x, f), torch.outer(y, f)
    along_x = torch.cat((waves_x.sin(), waves_x.cos()), dim=-1)[None, :].expand(*size, -1)
    along_y = torch.cat((waves_y.sin(), waves_y.cos()), dim=-1)[:, None].expand(*size, -1)
    return torch.cat((along_x, along_y), dim=-1)

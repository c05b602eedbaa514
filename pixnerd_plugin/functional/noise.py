"""Noise that depends on seeds and positions only, never on batch size, device or region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def image_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each seed, as in the release: a picture's noise depends on its own seed alone."""
    return [torch.Generator('cpu').manual_seed(seed) for seed in seeds]


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise ``(len(generators), *shape)``, float32 on the CPU."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def continuous_noise(noise: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate noise ``(B, C, H, W)`` at rows ``y (h,)`` and columns ``x (w,)``, in pixels; every value is N(0, 1).

    The interpolation is linear, with each pixel's weights scaled to unit L2 norm. So every single pixel stays standard
    normal, as in training, and neighbours vary smoothly. Integer positions return the noise itself.
    """
    # Not in one: on its way to a GPU without float64 (Apple's, Intel's) a tensor must be of another dtype already.
    rows = _interpolation(y, noise.shape[2]).to(noise.dtype).to(noise.device)
    columns = _interpolation(x, noise.shape[3]).to(noise.dtype).to(noise.device)
    return torch.einsum('bchw,yh,xw->bcyx', noise, rows, columns)


def _interpolation(position: Tensor, size: int) -> Tensor:
    """Interpolation matrix ``(len(position), size)``, its rows of unit L2 norm; positions outside are clamped.

    On the CPU, whatever device the positions are on.
    """
    position = position.cpu().double().clamp(0, size - 1)
    lower = position.floor().long().clamp(max=max(size - 2, 0))
    upper = (lower + 1).clamp(max=size - 1)
    fraction = position - lower
    weights = torch.zeros(len(position), size, dtype=torch.float64)
    index = torch.arange(len(position))
    weights[index, lower] += 1 - fraction
    weights[index, upper] += fraction
    return weights / weights.norm(dim=1, keepdim=True)


def grain_noise(seed: int, batch: int, channels: int, width: int, rows: range, columns: range) -> Tensor:
    """Independent standard normal noise ``(batch, channels, len(rows), len(columns))`` for a region of a picture.

    A value depends on ``seed``, the index in the batch, channel, absolute row and column, and the picture's ``width``,
    but not on the region.
    """
    out = np.empty((batch, channels, len(rows), len(columns)), dtype=np.float32)
    for b in range(batch):
        for i, row in enumerate(rows):
            stream = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, b, row))))
            line = stream.standard_normal((width, channels), dtype=np.float32)
            out[b, :, i] = line[columns.start : columns.stop].T
    return torch.from_numpy(out)

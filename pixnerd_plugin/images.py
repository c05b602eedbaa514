"""A network's output to picture files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pixnerd_plugin.formats.atomic import atomic_path


def to_uint8(images: Tensor) -> np.ndarray:
    """Map images (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3), truncating ``(x + 1) * 127.5 + 0.5`` as released."""
    pixels = ((images.float() + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def image_grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Lay out uint8 images (B, H, W, 3) row by row on white; returns (height, width, 3).

    By default ``columns`` makes the grid nearly square; ``gap`` is the space between images, in pixels.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def save_png(path: str | os.PathLike[str], pixels: np.ndarray, parameters: Mapping[str, str] | None = None) -> None:
    """Write uint8 ``pixels`` (height, width, 3) as a PNG whose text fields hold ``parameters``."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    for key, value in (parameters or {}).items():
        text.add_text(key, value)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format='PNG', pnginfo=text)

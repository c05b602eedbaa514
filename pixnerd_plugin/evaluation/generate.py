"""Drawing many pictures with a trained model, each from its own seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pixnerd_plugin.checkpoints import load_into, read_checkpoint
from pixnerd_plugin.engine.classes import set_classes
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.images import to_uint8
from pixnerd_plugin.registry import MODELS


def load_model(config: Any, checkpoint: str, device: torch.device | str) -> Any:
    """Build the model of a config, ready to sample, with the EMA weights of a checkpoint in any layout."""
    if config.get('own_classes'):
        # Those it was trained on, wherever that data is now.
        found = read_checkpoint(checkpoint)
        set_classes(config, found.architecture['num_classes'], found.metadata.get('class_names'))
    model = MODELS.build(dict(config.model, loss=None)).to(device).eval()
    load_into(model.backbone, checkpoint)
    return model


def sample_grid_hook(config: Any) -> Mapping[str, Any]:
    """The config's ``SampleGridHook``, which has prompts to draw.

    Raises:
        ValueError: if it has none.
    """
    hooks = [*config.get('default_hooks', {}).values(), *config.get('custom_hooks', [])]
    for hook in hooks:
        if hook and hook['type'] == 'SampleGridHook':
            return hook
    raise ValueError(f'{config.filename} has no SampleGridHook to take the prompts from')


def image_size_of(config: Any, checkpoint: str | Path | None = None) -> tuple[int, int]:
    """Height and width of the pictures of a config: its ``image_size``, else the checkpoint's resolution.

    Raises:
        ValueError: if neither is there, or ``image_size`` is not a size.
    """
    size = config.get('image_size')
    if size is None and checkpoint is not None:
        size = read_checkpoint(checkpoint).metadata.get('resolution')
    if size is None:
        raise ValueError(f'{config.filename} has no image_size; add image_size=256, or (height, width)')
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f'{config.filename}: image_size={size!r} must be (height, width) in pixels, or one number')
    return sides


def draw_images(
    model: Any, conditions: Mapping[str, Sequence[Any]], seeds: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Sample one picture per seed, uint8 ``(B, H, W, 3)``; each depends on its own seed and condition alone.

    Raises:
        FloatingPointError: if a picture is not finite; the message names its seed.
    """
    generators = image_generators(seeds)
    images = model.sample(conditions, draw_noise(generators, (3, *size)), generators=generators)
    bad = [seed for seed, image in zip(seeds, images, strict=True) if not image.isfinite().all()]
    if bad:
        raise FloatingPointError(
            f'the picture of seed {bad[0]} ({len(bad)} of {len(seeds)} in its batch) has NaN or infinity; '
            'are the weights complete? A lower guidance_scale or float32 may help'
        )
    return to_uint8(images)


def digest_weights(net: nn.Module) -> str:
    """16 hexadecimal digits that identify the weights of a network."""
    sha = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]

"""DINOv2's patch features, the target of representation alignment (REPA)."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixnerd_plugin.models.frozen import (
    FrozenModel,
    fast_dtype,
    find_pretrained,
    load_pretrained,
    loading,
    resolve_dtype,
)
from pixnerd_plugin.registry import MODELS

MODEL_TYPES = ('dinov2', 'dinov2_with_registers')
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@MODELS.register_module()
class DINOv2Teacher:
    """Images to the normalised patch tokens of a frozen DINOv2, one for each patch of the student.

    It is not an ``nn.Module``, so it stays out of checkpoints, DDP and the EMA. The folder is checked when the object
    is made; the weights are read at the first call.

    Args:
        model: folder of a DINOv2 (with registers or without) in transformers layout with safetensors weights, or its
            hub id if it is in the local cache. Nothing is downloaded.
        config: instead of ``model``, arguments of transformers' ``Dinov2Config`` for a teacher with random weights,
            always the same ones. For tests and for measuring speed.
        patch_size: side of the student's patch in pixels.
        dtype: ``'float32'`` or ``'bfloat16'``, of the teacher's weights and computation. By default bfloat16 on a GPU
            that has it, as in the release, and float32 elsewhere.

    Raises:
        FileNotFoundError: if ``model`` is missing or incomplete.
        ValueError: if ``model`` is not a DINOv2, or ``model`` and ``config`` are both given or both missing.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        config: dict[str, Any] | None = None,
        patch_size: int = 16,
        dtype: str | None = None,
    ):
        if (model is None) == (config is None):
            raise ValueError('DINOv2Teacher takes either model=FOLDER or config=dict(...)')
        self.patch_size = patch_size
        self.dtype = None if dtype is None else resolve_dtype(dtype)
        torch_dtype = self.dtype or torch.float32
        if model is not None:
            folder = find_pretrained(model, MODEL_TYPES, 'facebook/dinov2-base')
            self.encoder = FrozenModel(partial(load_dinov2, folder, torch_dtype))
        else:
            self.encoder = FrozenModel(partial(_random_dinov2, dict(config or {}), torch_dtype))

    @property
    def dim(self) -> int:
        """Width of the tokens, the ``teacher_dim`` of the loss."""
        return self.encoder.module.config.hidden_size

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to tokens (B, H/patch_size · W/patch_size, dim), row-major, float32.

        The teacher moves to the images' device and stays there.

        Raises:
            ValueError: if a side is not a multiple of ``patch_size``.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f'image of {height}×{width} pixels: sides must be multiples of {self.patch_size}')
        self.encoder.to(images.device)
        module = self.encoder.module
        if module.dtype != (dtype := self.dtype or fast_dtype(images.device)):
            module.to(dtype)
        config = module.config
        # Resized so that the teacher's patches match the student's: by 14/16 for the published pair.
        size = [side // self.patch_size * config.patch_size for side in (height, width)]
        pixels = F.interpolate(imagenet_normalize(images.float()), size, mode='bicubic')
        tokens = self.encoder(pixels.to(module.dtype)).last_hidden_state
        return tokens[:, 1 + getattr(config, 'num_register_tokens', 0) :].float()


def imagenet_normalize(images: Tensor) -> Tensor:
    mean, std = _mean_std(images.device)
    return ((images + 1) / 2 - mean) / std


@cache
def _mean_std(device: torch.device) -> tuple[Tensor, ...]:
    # Cached, because copying pageable memory to a GPU waits for the work queued there.
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def load_dinov2(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, Dinov2Model, Dinov2WithRegistersModel

    with loading(f'the config.json in {folder} does not load'):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model_class = Dinov2Model if config.model_type == 'dinov2' else Dinov2WithRegistersModel
    return load_pretrained(model_class, folder, config=config, dtype=dtype)


def _random_dinov2(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    module: nn.Module = Dinov2Model(Dinov2Config(**config))
    return module.to(dtype)

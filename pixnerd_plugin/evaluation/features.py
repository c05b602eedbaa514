"""Feature extractors: the networks in whose features image quality is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.formats.plain_file import read_json
from pixnerd_plugin.formats.schema import integer
from pixnerd_plugin.models.frozen import FrozenModel, find_pretrained
from pixnerd_plugin.registry import MODELS


@dataclass
class Features:
    """Features of ``B`` pictures, float32: ``pool (B, D)`` for the Fréchet distance, precision and recall.

    ``spatial (B, S)`` gives a second Fréchet distance (ADM's sFID), ``logits (B, K)`` the inception score.
    """

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    def cpu(self) -> Features:
        return Features(self.pool.cpu(), *(None if v is None else v.cpu() for v in (self.spatial, self.logits)))

    @staticmethod
    def cat(parts: list[Features]) -> Features:
        names = [field.name for field in fields(Features)]
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        joined: dict[str, Any] = {n: None if column[0] is None else torch.cat(column) for n, column in columns.items()}
        return Features(**joined)


class FeatureExtractor(ABC):
    """Pictures to features, with frozen weights from a local file.

    Register a subclass in ``MODELS`` and name it in a config: ``feature_extractor=dict(type='MyFeatures', ...)``. A
    subclass sets ``network``, a :class:`~pixnerd_plugin.models.frozen.FrozenModel`, which loads at the first call.
    """

    network: FrozenModel

    name: str
    """The label of results; the Fréchet distance is called FID only if this is ``'Inception'``."""

    dim: int
    """Width ``D`` of ``pool``; a Fréchet distance needs more pictures than that."""

    num_classes: int | None = None
    """Number of logits, if they are the classes of the measured model; results then include the samples' accuracy."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Convert uint8 ``(B, 3, H, W)`` to features, on the device chosen with :meth:`to`."""

    def to(self, device: torch.device | str) -> FeatureExtractor:
        self.network.to(device)
        return self


@MODELS.register_module()
class DINOv2Features(FeatureExtractor):
    """DINOv2's class token, as in FD-DINOv2 (Stein et al., 2023), for pictures resized bicubically to 224x224.

    Args:
        model: folder of a DINOv2 in transformers layout, or its hub id if it is in the local cache.
        size: side in pixels of the network's input, a multiple of 14.
    """

    name = 'DINOv2'

    def __init__(self, model: str | Path, size: int = 224):
        from pixnerd_plugin.models.teachers.dinov2 import MODEL_TYPES, load_dinov2

        folder = find_pretrained(model, MODEL_TYPES, 'facebook/dinov2-large')
        config = folder / 'config.json'
        self.dim = read_json(config).get('hidden_size')
        integer(1, 2**14).check(f'{config}: hidden_size', self.dim)
        self.size = size
        self.network = FrozenModel(partial(load_dinov2, folder, torch.float32))

    def __call__(self, images: Tensor) -> Features:
        from torch.nn.functional import interpolate

        from pixnerd_plugin.models.teachers.dinov2 import imagenet_normalize

        pixels = images.to(self.network.device).float() / 127.5 - 1
        pixels = interpolate(pixels, (self.size, self.size), mode='bicubic', antialias=True).clamp(-1, 1)
        return Features(self.network(imagenet_normalize(pixels)).last_hidden_state[:, 0])

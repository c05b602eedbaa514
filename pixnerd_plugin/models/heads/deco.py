"""DeCo's head: a pixel decoder with a condition vector for each pixel (Ma et al. 2025, arXiv 2511.19365)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixnerd_plugin.formats.parts import describe_part
from pixnerd_plugin.formats.schema import integer, one_of
from pixnerd_plugin.functional.coordinates import COORDINATES, features_of_patch, num_features
from pixnerd_plugin.models.layers import operations as own_operations
from pixnerd_plugin.registry import MODELS

from .base_pixels import require_base_pixels

# Pixels evaluated at once without gradients. The widest activation has 96 values a pixel, 48 MiB in float32.
CHUNK = 2**17


class ResidualBlock(nn.Module):
    """``h + gate * mlp(LayerNorm(h) * (1 + scale) + shift)``, modulated by each pixel's own condition."""

    def __init__(self, width: int, operations: Any, **factory: Any):
        super().__init__()
        self.norm = operations.LayerNorm(width, eps=1e-6, **factory)
        self.fc1 = operations.Linear(width, width, **factory)
        self.fc2 = operations.Linear(width, width, **factory)
        self.modulation = operations.Linear(width, 3 * width, **factory)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        """Map pixels ``h (..., W)`` to ``(..., W)``; ``cond (..., W)`` is the ``silu`` of their conditions."""
        shift, scale, gate = self.modulation(cond).chunk(3, dim=-1)
        modulated = torch.addcmul(shift, self.norm(h), 1 + scale)
        return torch.addcmul(h, gate, self.fc2(F.silu(self.fc1(modulated))))


@MODELS.register_module()
class DeCoHead(nn.Module):
    """Velocity of every pixel of a patch by a small network that all patches share, conditioned pixel by pixel.

    A patch's vector gives a condition vector for each of its pixels. As in the neural field, the input of a pixel is
    its noisy value and its coordinates. The head gives the ``P x P`` pixels of a patch and no others.

    Args:
        dim: width of the patch vectors.
        patch_size: side ``P`` of a patch in pixels.
        in_channels: channels ``C`` of the picture.
        width: width ``W`` of the decoder and of a pixel's condition.
        depth: number of residual blocks.
        coordinates: features of the pixel coordinates; published: ``'dct'`` for classes, ``'cosine'`` for text.
        num_frequencies: frequencies per axis.
        operations: namespace of the layers with weights.
        factory: ``dtype`` and ``device`` of the weights.

    Raises:
        ValueError: if ``coordinates`` is not known.
    """

    role = 'head'
    stored = dict(
        width=integer(1, 2**14),
        depth=integer(1, 512),
        coordinates=one_of(*COORDINATES),
        num_frequencies=integer(1, 1024),
    )

    def __init__(
        self,
        dim: int,
        patch_size: int,
        in_channels: int = 3,
        width: int = 32,
        depth: int = 3,
        coordinates: str = 'dct',
        num_frequencies: int = 8,
        operations: Any = own_operations,
        **factory: Any,
    ):
        super().__init__()
        if coordinates not in COORDINATES:
            raise ValueError(f'DeCoHead: coordinates={coordinates!r} is not known; use one of {", ".join(COORDINATES)}')
        self.patch_size = patch_size
        self.width = width
        self.depth = depth
        self.coordinates = coordinates
        self.num_frequencies = num_frequencies

        self.cond_embed = operations.Linear(dim, patch_size**2 * width, **factory)
        # The published input layer, Linear(C + F -> W), in two parts: all patches share that of the coordinates.
        self.pixel_embed = operations.Linear(in_channels, width, bias=False, **factory)
        self.coord_embed = operations.Linear(num_features(coordinates, num_frequencies), width, **factory)
        self.input_proj = operations.Linear(width, width, **factory)
        self.blocks = nn.ModuleList(ResidualBlock(width, operations, **factory) for _ in range(depth))
        self.proj = operations.Linear(width, in_channels, **factory)

    def init_weights(self) -> None:
        """Initialise as released: Xavier, but zero for modulations and last layer, so that training starts at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in (self.proj, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def architecture(self) -> dict[str, Any]:
        """The arguments that rebuild this head inside a backbone, as a registry dict."""
        return describe_part(self)

    def forward(
        self,
        s: Tensor,
        pixels: Tensor,
        positions: tuple[Tensor, Tensor] | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Map ``s (B, L, D)`` and noisy ``pixels (B, L, P, P, C)`` to velocities shaped like ``pixels``.

        Args:
            s: patch vectors.
            pixels: noisy values.
            positions: must be None, because the head gives only the pixels of the base picture.
            chunk: evaluate about this many pixels at once, in whole patches. By default everything with gradients, and
                2**17 without.

        Raises:
            ValueError: if the patches are not ``P x P`` or ``positions`` are given.
        """
        require_base_pixels(self, pixels, positions)
        size = (self.patch_size, self.patch_size)
        kind = (self.coordinates, self.num_frequencies)
        features = features_of_patch(*kind, size, self.patch_size, 'corners', pixels.device)
        table = self.coord_embed(features.to(pixels.dtype))
        flat, vectors = pixels.flatten(0, 1), s.flatten(0, 1)
        if chunk is None and torch.is_grad_enabled():
            velocity = self._evaluate(vectors, flat, table)
        else:
            patches = max(1, (chunk or CHUNK) // self.patch_size**2)
            parts = zip(vectors.split(patches), flat.split(patches), strict=True)
            velocity = torch.cat([self._evaluate(*part, table) for part in parts])
        return velocity.unflatten(0, s.shape[:2])

    def _evaluate(self, s: Tensor, pixels: Tensor, table: Tensor) -> Tensor:
        """Velocity of ``pixels (N, P, P, C)`` with the patch vectors ``s (N, D)``."""
        cond = F.silu(rearrange(self.cond_embed(s), 'n (h w c) -> n h w c', h=self.patch_size, c=self.width))
        h = self.input_proj(self.pixel_embed(pixels) + table)
        for block in self.blocks:
            h = block(h, cond)
        return self.proj(F.layer_norm(h, (self.width,), eps=1e-6))

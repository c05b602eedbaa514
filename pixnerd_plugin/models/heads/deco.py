"""DeCo's head: a pixel decoder with a condition vector for each pixel (Ma et al. 2025, arXiv 2511.19365)."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    its noisy value and its coordinates. Between base pixels, what it knows of them (the conditions and the embedded
    coordinates) is interpolated over the whole picture, from patch to patch too, so that there are no seams.

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
            positions: must be None: a patch knows its own pixels, and :meth:`over_picture` those between them.
            chunk: evaluate about this many pixels at once, in whole patches. By default everything with gradients, and
                2**17 without.

        Raises:
            ValueError: if the patches are not ``P x P`` or ``positions`` are given.
        """
        require_base_pixels(self, pixels, positions)
        table = self._table(pixels)
        flat, vectors = pixels.flatten(0, 1), s.flatten(0, 1)
        if chunk is None and torch.is_grad_enabled():
            velocity = self._evaluate(vectors, flat, table)
        else:
            patches = max(1, (chunk or CHUNK) // self.patch_size**2)
            parts = zip(vectors.split(patches), flat.split(patches), strict=True)
            velocity = torch.cat([self._evaluate(*part, table) for part in parts])
        return velocity.unflatten(0, s.shape[:2])

    def over_picture(
        self, s: Tensor, pixels: Tensor, grid: tuple[int, int], y: Tensor, x: Tensor, chunk: int | None = None
    ) -> Tensor:
        """Map ``s`` and noisy ``pixels`` anywhere in the picture to velocities shaped like ``pixels``.

        Conditions and embedded coordinates are interpolated bilinearly between base pixels, and constant beyond the
        outermost. At the base pixels this is :meth:`forward`.

        Args:
            s: patch vectors ``(B, rows * columns, D)``.
            pixels: noisy values ``(B, C, h, w)``.
            grid: ``(rows, columns)`` of patches.
            y, x: rows ``(h,)`` and columns ``(w,)`` of the pixels in base pixels; 0 is the centre of the first.
            chunk: evaluate about this many pixels at once, in whole rows. By default as in :meth:`forward`.
        """
        patch = self.patch_size
        lines = [_Between.of(at, count * patch, pixels) for at, count in zip((y, x), grid, strict=True)]
        rows, columns = (line.patches(patch) for line in lines)
        vectors = s.unflatten(1, grid)[:, rows, columns]
        cond = rearrange(self.cond_embed(vectors), 'b r q (h w c) -> b (r h) (q w) c', h=patch, c=self.width)
        down, across = (line.after(part.start * patch) for line, part in zip(lines, (rows, columns), strict=True))
        # Each patch has the same table, so an index is taken modulo the patch.
        table = across.values(self._table(pixels), 1, wrap=patch)
        values = pixels.movedim(1, -1)
        if chunk is None and torch.is_grad_enabled():
            at_once = len(y)
        else:
            at_once = max(1, (chunk or CHUNK) // (pixels.shape[3] * len(pixels)))
        parts = []
        for first in range(0, len(y), at_once):
            part = slice(first, first + at_once)
            own = down.part(part)
            between = across.values(own.values(cond, 1), 2)
            parts.append(self._decode(values[:, part], own.values(table, 0, wrap=patch), F.silu(between)))
        return torch.cat(parts, dim=1).movedim(-1, 1)

    def _table(self, pixels: Tensor) -> Tensor:
        """The embedded coordinates ``(P, P, W)`` of a patch, in the dtype of ``pixels``."""
        size = (self.patch_size, self.patch_size)
        kind = (self.coordinates, self.num_frequencies)
        features = features_of_patch(*kind, size, self.patch_size, 'corners', pixels.device)
        return self.coord_embed(features.to(pixels.dtype))

    def _evaluate(self, s: Tensor, pixels: Tensor, table: Tensor) -> Tensor:
        """Velocity of ``pixels (N, P, P, C)`` with the patch vectors ``s (N, D)``."""
        cond = rearrange(self.cond_embed(s), 'n (h w c) -> n h w c', h=self.patch_size, c=self.width)
        return self._decode(pixels, table, F.silu(cond))

    def _decode(self, pixels: Tensor, table: Tensor, cond: Tensor) -> Tensor:
        """Velocity of ``pixels (..., C)`` with their coordinates and conditions, each ``(..., W)``."""
        h = self.input_proj(self.pixel_embed(pixels) + table)
        for block in self.blocks:
            h = block(h, cond)
        return self.proj(F.layer_norm(h, (self.width,), eps=1e-6))


class _Between(NamedTuple):
    """Places along an axis, each between two base pixels: ``(1 - share) low + share high``."""

    low: Tensor
    high: Tensor
    share: Tensor
    first: int
    """The first base pixel that is needed,"""
    last: int
    """and the last."""

    @classmethod
    def of(cls, at: Tensor, size: int, like: Tensor) -> _Between:
        """Places ``at (n,)`` among ``size`` base pixels, on the device and in the dtype of ``like``."""
        on_cpu = at.device.type == 'cpu'
        at = (at.double() if on_cpu else at).clamp(0, size - 1)
        low = at.floor().long().clamp(max=max(size - 2, 0))
        high = (low + 1).clamp(max=size - 1)
        # A compiler cannot read the ends, and a GPU would wait for them.
        is_known = on_cpu and not torch.compiler.is_compiling()
        first, last = (int(low.min()), int(high.max())) if is_known else (0, size - 1)
        share = (at - low).to(like.dtype)
        return cls(low.to(like.device), high.to(like.device), share.to(like.device), first, last)

    def patches(self, patch_size: int) -> slice:
        """The patches that hold what is needed."""
        return slice(self.first // patch_size, self.last // patch_size + 1)

    def after(self, start: int) -> _Between:
        """The same places counted from another base pixel."""
        return self._replace(low=self.low - start, high=self.high - start)

    def part(self, part: slice) -> _Between:
        return self._replace(low=self.low[part], high=self.high[part], share=self.share[part])

    def values(self, base: Tensor, axis: int, wrap: int | None = None) -> Tensor:
        """``base``, interpolated along an axis; with ``wrap`` it repeats after so many base pixels."""
        low, high = (self.low, self.high) if wrap is None else (self.low % wrap, self.high % wrap)
        # Under autocast, conditions are in half precision beside pixels in float32.
        share = self.share.to(base.dtype).view(-1, *[1] * (base.ndim - axis - 1))
        return torch.lerp(base.index_select(axis, low), base.index_select(axis, high), share)

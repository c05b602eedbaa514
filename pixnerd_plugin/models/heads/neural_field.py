"""The patch-wise neural field: a tiny MLP per patch, its weights made by the transformer (paper Sec. 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...registry import MODELS
from .coordinates import ALIGNMENTS, COORDINATES, coordinate_features, num_features, pixel_positions

NORMALIZE = ('fc1', 'fc1_fc2', 'fc1_fc2_output')

# Pixels evaluated at once without gradients. The widest activation is then 2**17 * 128 numbers: 64 MiB in float32.
CHUNK = 2**17


@MODELS.register_module()
class NeuralFieldHead(nn.Module):
    """Velocity of every pixel of a patch from the patch's vector, the pixel's noisy value and its coordinates.

    Args:
        dim: width of the patch vectors.
        patch_size: side ``P`` of a patch in pixels of the base picture.
        in_channels: channels ``C`` of the picture.
        width: width ``D_x`` of the field.
        depth: number of field blocks.
        mlp_ratio: hidden width of a field block, as a multiple ``r`` of ``width``.
        coordinates: features of the pixel coordinates, ``'dct'``, ``'cosine'`` or ``'sincos'``.
        num_frequencies: frequencies per axis (see :func:`~.coordinates.coordinate_features`).
        normalize: ``'fc1'`` gives the columns of each block's first weight unit L2 norm, ``'fc1_fc2'`` those of both,
            ``'fc1_fc2_output'`` also puts an RMSNorm before the last linear layer (paper Fig. 7a).
        alignment: ``'corners'`` (published) or ``'centers'``; where pixels sit when there are more or fewer than
            ``P`` along a side.
        operations: namespace of the layers with weights.
        factory: ``dtype`` and ``device`` of the weights.
    """

    def __init__(
        self,
        dim: int,
        patch_size: int,
        in_channels: int = 3,
        width: int = 64,
        depth: int = 2,
        mlp_ratio: int = 2,
        coordinates: str = 'dct',
        num_frequencies: int = 8,
        normalize: str = 'fc1_fc2_output',
        alignment: str = 'corners',
        operations: Any = nn,
        **factory: Any,
    ):
        super().__init__()
        for name, value, known in (
            ('coordinates', coordinates, COORDINATES),
            ('normalize', normalize, NORMALIZE),
            ('alignment', alignment, ALIGNMENTS),
        ):
            if value not in known:
                raise ValueError(f'NeuralFieldHead: {name}={value!r} is not known; use one of {", ".join(known)}')
        if coordinates == 'cosine' and num_frequencies % 2:
            raise ValueError(f'NeuralFieldHead: cosine coordinates need an even num_frequencies, got {num_frequencies}')
        self.patch_size = patch_size
        self.width = width
        self.depth = depth
        self.mlp_ratio = mlp_ratio
        self.coordinates = coordinates
        self.num_frequencies = num_frequencies
        self.normalize = normalize
        self.alignment = alignment

        # The published input layer, Linear(C + F -> D_x), in two parts: the coordinates' part is shared by all patches.
        self.pixel_embed = operations.Linear(in_channels, width, bias=False, **factory)
        self.coord_embed = operations.Linear(num_features(coordinates, num_frequencies), width, **factory)
        # Every block's weights come from one product.
        self.generator = operations.Linear(dim, depth * 2 * mlp_ratio * width**2, **factory)
        self.norms = nn.ModuleList(operations.RMSNorm(width, eps=1e-6, **factory) for _ in range(depth))
        self.norm = operations.RMSNorm(width, eps=1e-6, **factory) if normalize == 'fc1_fc2_output' else nn.Identity()
        self.proj = operations.Linear(width, in_channels, **factory)

    def init_weights(self) -> None:
        """Zero the last layer, so that training starts at velocity 0."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def architecture(self) -> dict[str, Any]:
        """The arguments that rebuild this head inside a backbone, as a registry dict."""
        names = ('width', 'depth', 'mlp_ratio', 'coordinates', 'num_frequencies', 'normalize', 'alignment')
        return {'type': type(self).__name__, **{name: getattr(self, name) for name in names}}

    def positions(self, size: tuple[int, int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Row and column positions of the pixels of a patch sampled at ``size = (h, w)``."""
        return (
            pixel_positions(size[0], self.patch_size, self.alignment, device),
            pixel_positions(size[1], self.patch_size, self.alignment, device),
        )

    def forward(
        self,
        s: Tensor,
        pixels: Tensor,
        positions: tuple[Tensor, Tensor] | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Return the velocity of ``pixels``.

        Args:
            s: patch vectors ``(B, L, D)``.
            pixels: noisy values ``(B, L, h, w, C)``; any number of pixels per patch.
            positions: row positions ``(h,)`` and column positions ``(w,)``, shared by the patches; default: the whole
                patch sampled at ``(h, w)`` by the ``alignment`` rule.
            chunk: evaluate at most about this many pixels at once (whole rows of a patch, at least one). By default
                2**17 without gradients and everything with.
        """
        height, width = pixels.shape[2:4]
        y, x = positions if positions is not None else self.positions((height, width), pixels.device)
        limit = chunk or (pixels.shape[:4].numel() if torch.is_grad_enabled() else CHUNK)
        flat, vectors = pixels.flatten(0, 1), s.flatten(0, 1)
        patches_at_once = max(1, limit // (height * width))
        rows_at_once = min(height, max(1, limit // (patches_at_once * width)))
        if patches_at_once >= len(flat) and rows_at_once == height:
            return self._evaluate(self._weights(vectors), flat, y, x).unflatten(0, s.shape[:2])
        velocity = torch.empty_like(flat)
        for p in range(0, len(flat), patches_at_once):
            weights = self._weights(vectors[p : p + patches_at_once])
            for r in range(0, height, rows_at_once):
                part = (slice(p, p + patches_at_once), slice(r, r + rows_at_once))
                velocity[part] = self._evaluate(weights, flat[part], y[part[1]], x)
        return velocity.unflatten(0, s.shape[:2])

    def _weights(self, s: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The field's weights ``W1 (N, D_x, r D_x)`` and ``W2 (N, r D_x, D_x)`` per block from vectors ``s (N, D)``."""
        blocks = self.generator(s).unflatten(-1, (self.depth, 2, -1))
        weights = []
        for w1, w2 in (block.unbind(1) for block in blocks.unbind(1)):
            w1 = unit_columns(rearrange(w1, 'n (i o) -> n i o', i=self.width))
            w2 = rearrange(w2, 'n (i o) -> n i o', o=self.width)
            if self.normalize != 'fc1':
                w2 = unit_columns(w2)
            weights.append((w1, w2))
        return weights

    def _evaluate(self, weights: list[tuple[Tensor, Tensor]], pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Velocity of ``pixels (N, h, w, C)``, each patch under its own weights (paper Eqs. 10 and 11)."""
        features = coordinate_features(self.coordinates, self.num_frequencies, y, x).to(pixels.dtype)
        h = self.pixel_embed(pixels) + self.coord_embed(features)
        h = h.flatten(1, 2)
        for norm, (w1, w2) in zip(self.norms, weights, strict=True):
            h = h + F.silu(norm(h).to(w1.dtype) @ w1) @ w2
        return self.proj(self.norm(h)).view(pixels.shape)


def unit_columns(w: Tensor) -> Tensor:
    """Scale the columns of ``w (N, in, out)`` to unit L2 norm (paper Eq. 10)."""
    # F.normalize over a dimension that is not the last is several times slower on a CPU.
    squares = w.square().sum(dim=1, keepdim=True, dtype=torch.float32)
    return w * squares.clamp_min(1e-24).rsqrt().to(w.dtype)

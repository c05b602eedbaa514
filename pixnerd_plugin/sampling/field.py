"""The field on its own: a sampling run kept as patch vectors, rendered at any size and in any region.

Given the patch vectors of each evaluation, every pixel's ODE is its own: its velocity depends on them, on the pixel's
coordinates and on its own noisy value only. Replaying the solver on other pixels needs the head alone. A guidance that
couples the pixels of a picture does so through a few numbers of each evaluation, which are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.functional.blending import BLEND
from pixnerd_plugin.functional.noise import continuous_noise, grain_noise
from pixnerd_plugin.functional.prediction import to_velocity
from pixnerd_plugin.models.heads.anywhere import Span, axis_of, evaluate, require_anywhere, span_of

from .guidance import Run

Region = tuple[int, int, int, int]
"""``(top, left, bottom, right)`` in pixels of the whole picture, bottom and right exclusive."""

CHUNK = 2**17


class FieldTrajectory:
    """A deterministic sampling run as a function of the plane.

    Args:
        head: the field head that turns patch vectors into velocities.
        sampler: the solver that was run.
        noise: its base noise ``(B, C, H, W)``.
        token_grid: ``(rows, columns)`` of patches.
        tokens: patch vectors of each evaluation, in order: ``(branches, B, L, D)``, unconditional branch first where
            guidance was on; no branch where the picture stood still.
        dtype: dtype the head computes in; default: that of its weights.
        prediction: what the head gives, as the network's.
        guidance_numbers: ``(n, B)``, what the guidance took of each sampled picture as a whole, in order; other pixels
            of the picture get the same (see :class:`~.guidance.Run`).
    """

    def __init__(
        self,
        head: Any,
        sampler: Any,
        noise: Tensor,
        token_grid: tuple[int, int],
        tokens: list[Tensor],
        dtype: torch.dtype | None = None,
        prediction: str = 'velocity',
        guidance_numbers: Tensor | None = None,
    ):
        require_anywhere(head)
        self.head = head
        self.sampler = sampler
        self.noise = noise
        self.token_grid = (int(token_grid[0]), int(token_grid[1]))
        self.tokens = tokens
        self.dtype = dtype or next(head.parameters()).dtype
        self.prediction = prediction
        self.guidance_numbers = guidance_numbers

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the sampled picture."""
        return self.noise.shape[2], self.noise.shape[3]

    @torch.no_grad()
    def decode(
        self,
        size: tuple[int, int] | None = None,
        region: Region | None = None,
        grain: float = 0.0,
        seed: int = 0,
        chunk: int | None = None,
        alignment: str | None = None,
        callback: Callable[[int, int], None] | None = None,
        blend: float = BLEND,
    ) -> Tensor:
        """Render the picture, or a region of it, at any size, at the cost of the head alone.

        At the sampled size the result is the sampled image, up to the rounding of the patch vectors, with ``blend`` up
        to 0.5. Regions and the whole agree. (After a run at a fixed ``token_grid``, whose pixels are finer than base
        pixels, the image is that of the ``blend`` it was sampled with.)

        Args:
            size: height and width of the whole picture; default: as sampled.
            region: ``(top, left, bottom, right)`` in pixels of that picture; default: all of it.
            grain: share of noise that is independent in every pixel, 0 to 1; the rest is the base noise interpolated.
            seed: of that noise; it depends on seed and absolute position only.
            chunk: most pixels rendered at once.
            alignment: ``'centers'`` or ``'corners'``, where pixels sit in a patch; default: the head's own.
            callback: called with the pixels done and the pixels in all after each chunk; it may raise to stop.
            blend: how far from a border the fields on both sides share in a pixel, in base pixels, ``patch_size`` of
                which make a patch; 0 (hard borders) to 1 (see :mod:`~pixnerd_plugin.functional.blending`). Without
                effect for DeCo, which has no borders.

        Returns:
            ``(B, C, bottom - top, right - left)``, not clamped.

        Raises:
            ValueError: if size, region, grain or blend are out of range; the message names the value.
        """
        size = size or self.size
        region = region or (0, 0, *size)
        top, left, bottom, right = region
        if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
            raise ValueError(f'region {region} must lie inside the picture of {size[0]}x{size[1]} and not be empty')
        if not 0 <= grain <= 1:
            raise ValueError(f'grain={grain} must be from 0 to 1')
        axes = [
            axis_of(self.head, pixels, patches, blend, alignment)
            for pixels, patches in zip(size, self.token_grid, strict=True)
        ]

        batch, channels = self.noise.shape[:2]
        out = self.noise.new_empty(batch, channels, bottom - top, right - left)
        limit = max(1, (chunk or CHUNK) // batch)
        done = 0
        for rows in axes[0].cut(top, bottom, max(1, limit // (right - left))):
            covered_rows = span_of(axes[0], *rows, out.device)
            for columns in axes[1].cut(left, right, max(1, limit // (rows[1] - rows[0]))):
                covered_columns = span_of(axes[1], *columns, out.device)
                noise = self.sampler.limit(self._noise(size, slice(*rows), slice(*columns), grain, seed))
                pixels = self._render(noise, covered_rows, covered_columns)
                out[:, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = pixels
                done += (rows[1] - rows[0]) * (columns[1] - columns[0])
                if callback is not None:
                    callback(done, (bottom - top) * (right - left))
        return out

    def picture(self, index: int) -> FieldTrajectory:
        """The trajectory of one picture of the batch."""
        batch = self.noise.shape[0]
        if not 0 <= index < batch:
            raise ValueError(f'picture {index} is not among the {batch} of this trajectory, counted from 0')
        if batch == 1:
            # The patch vectors may be more than memory holds.
            return self
        part = slice(index, index + 1)
        tokens = [s[:, part] for s in self.tokens]
        numbers = None if self.guidance_numbers is None else self.guidance_numbers[:, part]
        return self._with(noise=self.noise[part], tokens=tokens, guidance_numbers=numbers)

    def to(self, device: torch.device | str) -> FieldTrajectory:
        """The trajectory with its head and noise on ``device``; the patch vectors follow as they are used."""
        head = self.head
        if next(head.parameters()).device != torch.device(device):
            # A copy: the network that was sampled still holds the head.
            head = copy.deepcopy(head).to(device)
        return self._with(head=head, noise=self.noise.to(device))

    def _with(self, **changes: Any) -> FieldTrajectory:
        """A copy with other attributes."""
        field = copy.copy(self)
        field.__dict__.update(changes)
        return field

    def tiles(
        self, size: tuple[int, int], tile: int, region: Region | None = None, **kwargs: Any
    ) -> Iterator[tuple[Region, Tensor]]:
        """Decode a picture tile by tile, row by row, never holding it whole: yields ``(region, pixels)``.

        Arguments as in :meth:`decode`; tiles are laid from the region's upper left corner.
        """
        first_row, first_column, bottom, right = region or (0, 0, *size)
        for top in range(first_row, bottom, tile):
            for left in range(first_column, right, tile):
                part = (top, left, min(top + tile, bottom), min(left + tile, right))
                yield part, self.decode(size, part, **kwargs)

    def _noise(self, size: tuple[int, int], rows: slice, columns: slice, grain: float, seed: int) -> Tensor:
        """Noise of a region: the base noise where the finer pixels sit, and grain."""
        y, x = (
            (torch.arange(part.start, part.stop, dtype=torch.float64) + 0.5) * (base / fine) - 0.5
            for part, base, fine in zip((rows, columns), self.size, size, strict=True)
        )
        noise = continuous_noise(self.noise, y, x)
        if grain == 0:
            return noise
        ranges = range(rows.start, rows.stop), range(columns.start, columns.stop)
        independent = grain_noise(seed, noise.shape[0], noise.shape[1], size[1], *ranges).to(noise)
        return (1 - grain**2) ** 0.5 * noise + grain * independent

    def _render(self, x: Tensor, rows: Span, columns: Span) -> Tensor:
        """Run the solver on ``x (B, C, h, w)``, the pixels of ``rows`` and ``columns``."""

        def output(s: Tensor, x: Tensor) -> Tensor:
            # The patch vectors may be on the CPU while the head is on a GPU.
            vectors, pixels = s.to(x.device, self.dtype), x.to(self.dtype)
            return evaluate(self.head, vectors, pixels, self.token_grid, rows, columns).to(x.dtype)

        return self.sampler.integrate(_Replay(self, output), x)

    def save(self, path: str | Path) -> None:
        """Write the trajectory, head included, to a safetensors file; whole or not at all."""
        from .field_file import write_field

        write_field(path, self)

    @classmethod
    def load(cls, path: str | Path) -> FieldTrajectory:
        """Read a trajectory that :meth:`save` wrote. Nothing that a stranger's file says is run.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a field trajectory, or damaged.
        """
        from .field_file import read_field

        return cls(**read_field(path))


class _Replay:
    """The velocities of a run again, for other pixels: each call takes the patch vectors of the next evaluation."""

    def __init__(self, field: FieldTrajectory, output: Callable[[Tensor, Tensor], Tensor]):
        self.evaluations = iter(field.tokens)
        self.output = output
        self.prediction = field.prediction
        self.guidance, self.scale = field.sampler.guidance, field.sampler.guidance_scale
        numbers = field.guidance_numbers
        self.run = Run(field.noise.new_empty(0) if numbers is None else numbers.to(field.noise))

    def __call__(self, x: Tensor, t: float) -> Tensor:
        branches = next(self.evaluations)  # (branches, B, L, D)
        if not len(branches):
            return torch.zeros_like(x)
        # Both branches as one batch: a GPU waits for launches.
        pixels = torch.cat([x] * len(branches))
        v = to_velocity(self.output(branches.flatten(0, 1), pixels), pixels, t, self.prediction).chunk(len(branches))
        return v[0] if len(v) == 1 else self.guidance.combine(v[0], v[1], x, t, self.scale, self.run)

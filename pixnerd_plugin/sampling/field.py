"""The field on its own: a sampling run kept as patch vectors, rendered at any size and in any region.

Given the patch vectors of each evaluation, every pixel's ODE is its own: its velocity depends on them, on the pixel's
coordinates and on its own noisy value only. Replaying the solver on other pixels needs the head alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.functional.noise import continuous_noise, grain_noise
from pixnerd_plugin.functional.patches import from_patches, to_patches
from pixnerd_plugin.functional.positions import pixel_positions

from .guidance import guide

Region = tuple[int, int, int, int]
"""``(top, left, bottom, right)`` in pixels of the whole picture, bottom and right exclusive."""

CHUNK = 2**17


class _Span(NamedTuple):
    """A run of pixels along one axis: those at the same ``positions`` in each of the patches ``first`` to ``last``."""

    first: int
    last: int
    positions: Tensor
    pixels: slice


def require_field(head: Any) -> None:
    """Check that a head can be evaluated anywhere in its patch.

    Raises:
        ValueError: if it knows only the pixels of its patch, as the linear head does.
    """
    if not hasattr(head, 'alignment'):
        raise ValueError(f'only a neural field can be decoded anywhere, and this head is a {type(head).__name__}')


class FieldTrajectory:
    """A deterministic sampling run as a function of the plane.

    Args:
        head: the field head that turns patch vectors into velocities.
        sampler: the solver that was run.
        noise: its base noise ``(B, C, H, W)``.
        token_grid: ``(rows, columns)`` of patches.
        tokens: patch vectors of each evaluation, in order: ``(branches, B, L, D)``, unconditional branch first where
            guidance was on.
        dtype: dtype the head computes in; default: that of its weights.
    """

    def __init__(
        self,
        head: Any,
        sampler: Any,
        noise: Tensor,
        token_grid: tuple[int, int],
        tokens: list[Tensor],
        dtype: torch.dtype | None = None,
    ):
        require_field(head)
        self.head = head
        self.sampler = sampler
        self.noise = noise
        self.token_grid = (int(token_grid[0]), int(token_grid[1]))
        self.tokens = tokens
        self.dtype = dtype or next(head.parameters()).dtype

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
    ) -> Tensor:
        """Render the picture, or a region of it, at any size, at the cost of the head alone.

        At the sampled size the result is the sampled image, up to the rounding of the patch vectors. Regions and the
        whole agree.

        Args:
            size: height and width of the whole picture; default: as sampled.
            region: ``(top, left, bottom, right)`` in pixels of that picture; default: all of it.
            grain: share of noise that is independent in every pixel, 0 to 1; the rest is the base noise interpolated.
            seed: of that noise; it depends on seed and absolute position only.
            chunk: most pixels rendered at once.
            alignment: ``'centers'`` or ``'corners'``, where pixels sit in a patch; default: the head's own.
            callback: called with the pixels done and the pixels in all after each chunk; it may raise to stop.

        Returns:
            ``(B, C, bottom - top, right - left)``, not clamped.

        Raises:
            ValueError: if size, region or grain are out of range; the message names the value.
        """
        size = size or self.size
        region = region or (0, 0, *size)
        top, left, bottom, right = region
        if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
            raise ValueError(f'region {region} must lie inside the picture of {size[0]}x{size[1]} and not be empty')
        if not 0 <= grain <= 1:
            raise ValueError(f'grain={grain} must be from 0 to 1')
        alignment = alignment or self.head.alignment
        rows = self._spans(0, size[0], top, bottom, alignment)
        columns = self._spans(1, size[1], left, right, alignment)

        batch, channels = self.noise.shape[:2]
        out = self.noise.new_empty(batch, channels, bottom - top, right - left)
        chunk = chunk or CHUNK
        done = 0
        for row in _group(rows, max(1, chunk // (batch * (right - left)))):
            for column in _group(columns, max(1, chunk // (batch * _length(row)))):
                y, x = row.pixels, column.pixels
                pixels = self._render(self._noise(size, y, x, grain, seed), row, column)
                out[:, :, y.start - top : y.stop - top, x.start - left : x.stop - left] = pixels
                done += _length(row) * _length(column)
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
        return FieldTrajectory(self.head, self.sampler, self.noise[part], self.token_grid, tokens, self.dtype)

    def to(self, device: torch.device | str) -> FieldTrajectory:
        """The trajectory with its head and noise on ``device``; the patch vectors follow as they are used."""
        head = self.head
        if next(head.parameters()).device != torch.device(device):
            # A copy: the network that was sampled still holds the head.
            head = copy.deepcopy(head).to(device)
        return FieldTrajectory(head, self.sampler, self.noise.to(device), self.token_grid, self.tokens, self.dtype)

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

    def _spans(self, axis: int, total: int, start: int, stop: int, alignment: str) -> list[_Span]:
        """The pixels ``start`` to ``stop`` of an axis of ``total`` pixels, one span per patch."""
        patches, patch_size = self.token_grid[axis], self.head.patch_size
        if total % patches and alignment == 'corners':
            raise ValueError(
                f'a side of {total} is not a multiple of the {patches} patches along it, which corner-aligned '
                f"coordinates need; use a multiple or alignment='centers'"
            )
        spans = []
        for patch in range(patches):
            # The pixels whose centres lie in this patch.
            first, last = (-(-(2 * p * total - patches) // (2 * patches)) for p in (patch, patch + 1))
            begin, end = max(first, start), min(last, stop)
            if begin >= end:
                continue
            if total % patches == 0:
                positions = pixel_positions(total // patches, patch_size, alignment)[begin - first : end - first]
            else:
                inside = (torch.arange(begin, end, dtype=torch.float64) + 0.5) * (patches / total) - patch
                positions = ((inside * patch_size - 0.5) / max(patch_size - 1, 1)).float()
            spans.append(_Span(patch, patch + 1, positions, slice(begin, end)))
        return spans

    def _noise(self, size: tuple[int, int], rows: slice, columns: slice, grain: float, seed: int) -> Tensor:
        """Noise of a region: the base noise where the finer pixels sit, and grain."""
        y, x = (
            (torch.arange(part.start, part.stop, dtype=torch.float64, device=self.noise.device) + 0.5) * (base / fine)
            - 0.5
            for part, base, fine in zip((rows, columns), self.size, size, strict=True)
        )
        noise = continuous_noise(self.noise, y, x)
        if grain == 0:
            return noise
        ranges = range(rows.start, rows.stop), range(columns.start, columns.stop)
        independent = grain_noise(seed, noise.shape[0], noise.shape[1], size[1], *ranges).to(noise)
        return (1 - grain**2) ** 0.5 * noise + grain * independent

    def _render(self, x: Tensor, row: _Span, column: _Span) -> Tensor:
        """Run the solver on ``x (B, C, h, w)``, the pixels of whole spans."""
        grid = (row.last - row.first, column.last - column.first)
        indices = torch.arange(row.first, row.last)[:, None] * self.token_grid[1] + torch.arange(
            column.first, column.last
        )
        # Where the patch vectors are, which may be the CPU while the head is on a GPU.
        indices = indices.flatten().to(self.tokens[0].device)
        positions = (row.positions.to(x), column.positions.to(x))
        evaluations = iter(self.tokens)

        def velocity(x: Tensor, t: float) -> Tensor:
            s = next(evaluations)[:, :, indices].to(x.device, self.dtype)  # (branches, B, n, D)
            pixels = to_patches(x, grid).to(self.dtype)
            v = [from_patches(self.head(branch, pixels, positions), grid).to(x.dtype) for branch in s]
            return v[0] if len(v) == 1 else guide(v[0], v[1], self.sampler.guidance_scale)

        return self.sampler.integrate(velocity, x)

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


def _length(span: _Span) -> int:
    return span.pixels.stop - span.pixels.start


def _group(spans: list[_Span], limit: int) -> Iterator[_Span]:
    """Cut spans longer than ``limit`` pixels, and join neighbours at equal positions up to ``limit``."""
    held: _Span | None = None
    for span in spans:
        if _length(span) > limit:
            if held is not None:
                yield held
                held = None
            for begin in range(0, _length(span), limit):
                positions = span.positions[begin : begin + limit]
                start = span.pixels.start + begin
                yield _Span(span.first, span.last, positions, slice(start, start + len(positions)))
        elif (
            held is not None and torch.equal(held.positions, span.positions) and _length(held) + _length(span) <= limit
        ):
            held = _Span(held.first, span.last, held.positions, slice(held.pixels.start, span.pixels.stop))
        else:
            if held is not None:
                yield held
            held = span
    if held is not None:
        yield held

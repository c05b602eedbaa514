"""Joining neighbouring fields: each is evaluated a little beyond its patch, and they are averaged where they overlap.

Along an axis, ``u`` is a pixel's centre in base pixels and ``b`` the border between patches ``p`` and ``p + 1``. Where
``|u - b| < blend`` the velocity is ``w v_p + (1 - w) v_{p+1}`` with ``w = 1/2 + (b - u) / (2 blend)``: half of each on
the border, one field alone from ``blend`` on. In a corner the two axes' weights multiply. At the sampled size every
centre is half a base pixel from a border, so that ``blend = 1/2`` changes nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .patches import from_patches, to_patches
from .positions import pixel_positions

Field = Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Tensor]
"""``(s (B, n, D), pixels (B, n, h, w, C), positions (h,), (w,)) -> velocity (B, n, h, w, C)``."""

BLEND = 0.5
MAX_BLEND = 1.0


class Lattice(NamedTuple):
    """One axis of a picture: ``pixels`` of them over ``patches`` of ``patch_size`` base pixels, joined by ``blend``."""

    pixels: int
    patches: int
    patch_size: int
    alignment: str
    blend: float

    @classmethod
    def of(cls, head: Any, pixels: int, patches: int, blend: float, alignment: str | None = None) -> Lattice:
        """The axis of a picture with the fields of ``head``; ``alignment`` is by default the head's own.

        Raises:
            ValueError: if the head, ``blend`` or the number of pixels does not fit; the message names it.
        """
        if not hasattr(head, 'alignment'):
            raise ValueError(
                f'blend={blend} joins neural fields, and this head is a {type(head).__name__}; use blend=0'
            )
        alignment = alignment or head.alignment
        limit = min(MAX_BLEND, head.patch_size / 2)
        if not 0 <= blend <= limit:
            raise ValueError(f'blend={blend} must be from 0 (hard borders) to {limit:g} base pixels')
        if alignment == 'corners' and pixels % patches:
            raise ValueError(
                f'a side of {pixels} is not a multiple of the {patches} patches along it, which corner-aligned '
                f"coordinates need; use a multiple or alignment='centers'"
            )
        return cls(pixels, patches, head.patch_size, alignment, blend)

    def first_from(self, u: Fraction) -> int:
        """The first pixel with its centre at or after ``u`` base pixels; it may lie outside the picture."""
        return ceil(self._index(u))

    def window(self, patch: int) -> tuple[int, int]:
        """The pixels in which a patch's field has a share, ``first`` and ``last + 1``, ignoring the picture's edges."""
        start, stop = Fraction(patch * self.patch_size), Fraction((patch + 1) * self.patch_size)
        if self.blend == 0:
            return self.first_from(start), self.first_from(stop)
        blend = Fraction(self.blend)
        # A share of 0 is none: a pixel exactly there belongs to the other patch alone.
        return floor(self._index(start - blend)) + 1, self.first_from(stop + blend)

    def positions(self, patch: int, start: int, stop: int) -> Tensor:
        """Positions in ``patch`` of the picture's pixels ``start`` to ``stop``, which may lie outside of the patch."""
        if self.pixels % self.patches == 0:
            num = self.pixels // self.patches
            return pixel_positions(num, self.patch_size, self.alignment, start=start - patch * num, num=stop - start)
        inside = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (self.patches / self.pixels) - patch
        return ((inside * self.patch_size - 0.5) / max(self.patch_size - 1, 1)).float()

    def cut(self, start: int, stop: int, limit: int) -> list[tuple[int, int]]:
        """Cut the pixels ``start`` to ``stop`` into runs of about ``limit``, after the joins of patches if possible.

        Cuts there need the fewest fields on both sides. A run may be an eighth longer, so that whole patches that fit
        without their join are not cut.
        """
        places = [self.first_from(p * self.patch_size + Fraction(self.blend)) for p in range(1, self.patches)]
        places = [place for place in places if place < stop]
        runs = []
        while start < stop:
            reach = start + limit
            reach = max((place for place in [*places, stop] if start < place <= reach + limit // 8), default=reach)
            runs.append((start, reach))
            start = reach
        return runs

    def _index(self, u: Fraction) -> Fraction:
        return Fraction(u) * self.pixels / (self.patches * self.patch_size) - Fraction(1, 2)


class Windows(NamedTuple):
    """``n`` patches with ``h`` pixels at the same positions; pixels are counted from the start of a run."""

    patches: Tensor  # (n,), on the CPU
    pixels: Tensor  # (n h,)
    positions: Tensor  # (h,)


class Cover(NamedTuple):
    """How fields cover a run of ``N`` pixels along an axis, of which ``M`` are shared by two.

    ``first`` and ``second`` count the values evaluated, window after window.
    """

    windows: list[Windows]
    first: Tensor  # (N,): where a pixel's value by its first field is
    shared: Tensor  # (M,): which pixels have a second one,
    second: Tensor  # (M,): where that is,
    weights: Tensor  # (M,): and the first one's weight


@torch.compiler.disable
def cover(lattice: Lattice, start: int, stop: int, device: torch.device | None = None) -> Cover:
    """Lay windows over the pixels ``start`` to ``stop`` of an axis."""
    is_regular = lattice.pixels % lattice.patches == 0
    groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for patch in range(lattice.patches):
        low, high = lattice.window(patch)
        seen = min(high, stop) - max(low, start)
        # Little that is cut off is evaluated all the same, and never read: patches with equal windows are evaluated at
        # once, and every evaluation reads all of the weights that make the fields.
        if not is_regular or 2 * (high - low - seen) > seen:
            low, high = max(low, start), min(high, stop)
        if low < high:
            offset = patch * lattice.pixels // lattice.patches
            key = (low - offset, high - offset) if is_regular else (patch, patch)
            groups.setdefault(key, []).append((patch, low, high))

    windows: list[Windows] = []
    first, second = torch.full((2, stop - start), -1)
    owner = torch.zeros(stop - start, dtype=torch.float64)
    where: dict[int, tuple[int, int, int]] = {}
    evaluated = 0
    for group in groups.values():
        patch, low, high = group[0]
        pixels = torch.stack([torch.arange(low, high) for _, low, high in group]).clamp(start, stop - 1) - start
        positions = lattice.positions(patch, low, high)
        windows.append(Windows(torch.tensor([p for p, *_ in group]), pixels.flatten().to(device), positions.to(device)))
        for patch, low, high in group:
            where[patch] = (low, high, evaluated)
            evaluated += high - low
    for patch in sorted(where):
        low, high, at = where[patch]
        part = slice(max(low, start) - start, min(high, stop) - start)
        index = torch.arange(part.start, part.stop) + (at + start - low)
        is_first = first[part] < 0
        second[part] = torch.where(is_first, second[part], index)
        first[part] = torch.where(is_first, index, first[part])
        owner[part] = torch.where(is_first, patch, owner[part])

    shared = (second >= 0).nonzero().flatten()
    border = (owner[shared] + 1) * lattice.patch_size
    u = (shared + start + 0.5) * (lattice.patches * lattice.patch_size / lattice.pixels)
    weights = (0.5 + (border - u) / (2 * max(lattice.blend, 1e-9))).float()
    moved = (tensor.to(device) for tensor in (first, shared, second[shared], weights))
    return Cover(windows, *moved)


def blend_fields(field: Field, s: Tensor, x: Tensor, rows: Cover, columns: Cover, num_columns: int) -> Tensor:
    """The velocity of ``x``: each field on its window, and the weighted mean where windows overlap.

    Args:
        field: evaluates patch vectors on pixels.
        s: patch vectors ``(B, rows * num_columns, D)`` of the whole grid.
        x: noisy pixels ``(B, C, h, w)``, those that ``rows`` and ``columns`` cover.
        rows, columns: of :func:`cover`.
        num_columns: columns of the grid.
    """
    lines = []
    for row in rows.windows:
        line = x.index_select(2, row.pixels)
        parts = []
        for column in columns.windows:
            grid = (len(row.patches), len(column.patches))
            patches = (row.patches[:, None] * num_columns + column.patches).flatten().to(s.device)
            pixels = to_patches(line.index_select(3, column.pixels), grid)
            parts.append(from_patches(field(s[:, patches], pixels, (row.positions, column.positions)), grid))
        lines.append(torch.cat(parts, dim=3))
    values = torch.cat(lines, dim=2)
    return _mean(_mean(values, rows, 2), columns, 3).to(x.dtype)


def _mean(values: Tensor, cover: Cover, axis: int) -> Tensor:
    first = values.index_select(axis, cover.first)
    if not len(cover.shared):
        return first
    weights = cover.weights.view(-1, *[1] * (3 - axis))
    mean = weights * first.index_select(axis, cover.shared) + (1 - weights) * values.index_select(axis, cover.second)
    return first.to(mean.dtype).index_copy(axis, cover.shared, mean)

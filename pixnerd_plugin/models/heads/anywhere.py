"""Evaluating a head between base pixels: fields patch by patch and joined, heads of the whole picture all at once.

A head can do so in one of two ways. A neural field has an ``alignment``, and takes positions in its patch. A head that
reads the whole picture, as DeCo's does to interpolate, has ``over_picture(s, pixels, grid, y, x, chunk)``, and takes
positions in the picture. Every other head gives the base pixels alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.functional.blending import MAX_BLEND, Cover, Lattice, blend_fields, cover
from pixnerd_plugin.functional.patches import from_patches, to_patches

Span = Cover | Tensor
"""A run of pixels along an axis: how fields cover them, or where they are in base pixels ``(n,)``."""


def knows_anywhere(head: Any) -> bool:
    """Whether a head can be evaluated between base pixels."""
    return hasattr(head, 'alignment') or hasattr(head, 'over_picture')


def require_anywhere(head: Any) -> None:
    """Check that a head can be evaluated between base pixels.

    Raises:
        ValueError: if it knows only the pixels of its patch, as the linear head does.
    """
    if not knows_anywhere(head):
        raise ValueError(
            f'only a neural field, or DeCo, can be decoded anywhere, and this head is a {type(head).__name__}'
        )


class Line(NamedTuple):
    """One axis of a picture for a head of the whole picture: ``pixels`` of them over ``base`` base pixels."""

    pixels: int
    base: int

    def cut(self, start: int, stop: int, limit: int) -> list[tuple[int, int]]:
        """Cut the pixels ``start`` to ``stop`` into runs of at most ``limit``."""
        return [(first, min(first + limit, stop)) for first in range(start, stop, limit)]

    def span(self, start: int, stop: int) -> Tensor:
        """Where the centres of the pixels ``start`` to ``stop`` are, in base pixels; 0 is the centre of the first."""
        return (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (self.base / self.pixels) - 0.5


def axis_of(head: Any, pixels: int, patches: int, blend: float, alignment: str | None = None) -> Lattice | Line:
    """An axis of a picture as a head sees it; ``alignment`` is by default the head's own.

    A head of the whole picture has no borders between patches, so ``blend`` does nothing there.

    Raises:
        ValueError: if the head, ``blend``, ``alignment`` or the number of pixels does not fit; the message names it.
    """
    if not hasattr(head, 'over_picture'):
        return Lattice.of(head, pixels, patches, blend, alignment)
    if not 0 <= blend <= MAX_BLEND:
        raise ValueError(f'blend={blend} must be from 0 to {MAX_BLEND:g} base pixels')
    if alignment not in (None, 'centers'):
        raise ValueError(f"{type(head).__name__} knows alignment='centers' alone, not {alignment!r}")
    return Line(pixels, patches * head.patch_size)


def span_of(axis: Lattice | Line, start: int, stop: int, device: torch.device | None = None) -> Span:
    """The pixels ``start`` to ``stop`` of an axis, for :func:`evaluate`."""
    return axis.span(start, stop) if isinstance(axis, Line) else cover(axis, start, stop, device)


def evaluate(
    head: Any,
    s: Tensor,
    pixels: Tensor,
    grid: tuple[int, int],
    rows: Span,
    columns: Span,
    chunk: int | None = None,
) -> Tensor:
    """What a head gives at the ``pixels (B, C, h, w)`` that ``rows`` and ``columns`` say where they are.

    Args:
        head: the head.
        s: patch vectors ``(B, L, D)`` of the whole grid.
        pixels: noisy values.
        grid: ``(rows, columns)`` of patches.
        rows, columns: of :func:`span_of`.
        chunk: most pixels at once.
    """
    if isinstance(rows, Tensor) or isinstance(columns, Tensor):
        output: Tensor = head.over_picture(s, pixels, grid, rows, columns, chunk)
        return output

    def field(s: Tensor, pixels: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        velocity: Tensor = head(s, pixels, positions, chunk)
        return velocity

    return blend_fields(field, s, pixels, rows, columns, grid[1])


def head_over(
    head: Any,
    s: Tensor,
    pixels: Tensor,
    grid: tuple[int, int],
    positions: tuple[Tensor, Tensor] | None,
    chunk: int | None,
    blend: float,
) -> Tensor:
    """What a head gives for a whole picture ``(B, C, rows h, columns w)``; arguments as in ``PixNerdDiT.decode``."""
    is_joined = blend != 0
    if hasattr(head, 'over_picture'):
        if positions is not None:
            y, x = (_in_picture(at, patches, head.patch_size) for at, patches in zip(positions, grid, strict=True))
            return evaluate(head, s, pixels, grid, y, x, chunk)
        is_joined = tuple(pixels.shape[2:]) != tuple(patches * head.patch_size for patches in grid)
    if is_joined:
        rows, columns = (
            span_of(axis_of(head, size, patches, blend), 0, size, pixels.device)
            for size, patches in zip(pixels.shape[2:], grid, strict=True)
        )
        return evaluate(head, s, pixels, grid, rows, columns, chunk)
    return from_patches(head(s, to_patches(pixels, grid), positions, chunk), grid)


def _in_picture(positions: Tensor, patches: int, patch_size: int) -> Tensor:
    """Positions ``(n,)`` in each patch, in base pixels of the picture ``(patches n,)``."""
    starts = torch.arange(patches, device=positions.device)[:, None] * patch_size
    return (starts + positions * (patch_size - 1)).flatten()

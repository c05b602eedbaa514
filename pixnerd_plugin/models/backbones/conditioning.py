"""Conditions: what fits a network, and what it computes from time and condition alone, ahead for many pictures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Conditioning(NamedTuple):
    """The part of the transformer that does not depend on the picture, for ``R`` pairs of a time and a condition.

    Args:
        e_t: embedded times ``(R, D)``.
        modulations: ``(R, depth, 6, D)``, those of each block, with 1 added to the scales.
        text: keys and values of the refined text in each block, ``(R, depth, 2, num_heads, N, head_dim)``; None for
            classes.

    Pairs are the first dimension, so that slices keep their strides and do not make a compiled network recompile.
    """

    e_t: Tensor
    modulations: Tensor
    text: Tensor | None

    def select(self, rows: slice | Tensor) -> Conditioning:
        """The pairs at ``rows``, in that order; a slice gives views."""
        return Conditioning(self.e_t[rows], self.modulations[rows], None if self.text is None else self.text[rows])

    def clone(self) -> Conditioning:
        """A copy that shares no memory."""
        return Conditioning(
            self.e_t.clone(), self.modulations.clone(), None if self.text is None else self.text.clone()
        )

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for part in self if part is not None)


def check_condition(cond: Tensor, batch: int, num_classes: int | None, text_dim: int | None, text_length: int) -> None:
    """Raise a ValueError if ``cond`` is no condition of ``batch`` pictures for a network of classes, or of texts."""
    if num_classes is None:
        fits = cond.ndim == 3 and len(cond) == batch and cond.shape[2] == text_dim
        if not fits or cond.shape[1] > text_length:
            raise ValueError(
                f'cond must be text embeddings ({batch}, at most {text_length}, {text_dim}), got {tuple(cond.shape)}'
            )
        return
    if cond.is_floating_point() and cond.shape == (batch, num_classes):
        return
    if cond.shape != (batch,):
        raise ValueError(
            f'cond must be class ids ({batch},) for this class-conditional model, or shares of its classes '
            f'({batch}, {num_classes}), got {tuple(cond.shape)}'
        )
    # Reading an id from a GPU would stall, and a compiler cannot read one.
    if cond.device.type == 'cpu' and batch and not torch.compiler.is_compiling():
        for extreme in (int(cond.min()), int(cond.max())):
            if not 0 <= extreme <= num_classes:
                raise ValueError(
                    f'class {extreme} is out of range: this model has classes 0 to {num_classes - 1}, '
                    f'and {num_classes} for no class'
                )

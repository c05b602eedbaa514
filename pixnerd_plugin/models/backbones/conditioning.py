"""What the network computes from time and condition alone, so that it can be computed ahead for many pictures."""

from __future__ import annotations

from typing import NamedTuple

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

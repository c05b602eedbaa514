"""What the network computes of time and condition alone: the same for every picture, and known before it is drawn."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Conditioning(NamedTuple):
    """The transformer's share that does not depend on the picture, for ``R`` pairs of a time and a condition.

    Args:
        e_t: embedded times ``(R, D)``.
        modulations: of each block, ``(R, depth, 6, D)``.
        text: keys and values of the refined text in each block, ``(R, depth, 2, num_heads, N, head_dim)``; None for
            classes.

    Rows come first, so that a slice has the strides of the whole and a compiled network takes any.
    """

    e_t: Tensor
    modulations: Tensor
    text: Tensor | None

    def select(self, rows: slice | Tensor) -> Conditioning:
        """The pairs at ``rows``, in that order; views for a slice."""
        return Conditioning(self.e_t[rows], self.modulations[rows], None if self.text is None else self.text[rows])

    def clone(self) -> Conditioning:
        """The same in memory of its own."""
        return Conditioning(
            self.e_t.clone(), self.modulations.clone(), None if self.text is None else self.text.clone()
        )

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return sum(part.nbytes for part in self if part is not None)

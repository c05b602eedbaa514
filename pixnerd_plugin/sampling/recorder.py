"""What a field needs of a sampling run: the patch vectors of every evaluation."""

from __future__ import annotations

import torch
from torch import Tensor


class Recorder:
    """Keeps patch vectors ``(branches, B, L, D)`` of each evaluation, the unconditional branch first.

    Args:
        dtype: what they are kept in.
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16):
        self.dtype = dtype
        self._tokens: list[Tensor | None] = []

    def record(self, s: Tensor, branches: int) -> None:
        """Keep the patch vectors ``(branches * B, L, D)`` of one evaluation."""
        self._tokens.append(s.to(self.dtype).unflatten(0, (branches, -1)))

    def skip(self) -> None:
        """Note an evaluation that the network was not asked for."""
        self._tokens.append(None)

    @property
    def tokens(self) -> list[Tensor]:
        """The patch vectors of each evaluation; one that was skipped has no branch."""
        some = next(s for s in self._tokens if s is not None)
        return [some[:0] if s is None else s for s in self._tokens]

"""What a field needs of a sampling run: the patch vectors of every evaluation."""

from __future__ import annotations

import torch
from torch import Tensor


class Recorder:
    """Keeps patch vectors ``(branches, B, L, D)`` of each evaluation in ``tokens``, the unconditional branch first.

    Args:
        dtype: what they are kept in.
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16):
        self.dtype = dtype
        self.tokens: list[Tensor] = []

    def record(self, s: Tensor, branches: int) -> None:
        """Keep the patch vectors ``(branches * B, L, D)`` of one evaluation."""
        self.tokens.append(s.to(self.dtype).unflatten(0, (branches, -1)))

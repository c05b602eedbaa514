"""Conditioning of coming evaluations, for several times at once, and the null condition once for all pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Memory for conditionings computed ahead: all 100 steps of one picture in the published XL/16 in bfloat16.
LIMIT_BYTES = 2**27


class PrecomputedConditioning:
    """Serves ``net.condition`` for one time after another.

    Args:
        net: a backbone with a method ``condition``.
        cond, null_cond: conditions of the batch ``(B, ...)``; ``null_cond`` may have batch size 1, or be None.
        times: when the network will be evaluated, in order; other times are computed when asked for.
        dtype: dtype of the network's pictures.
        ends: where the step from each time ends, for a network of mean velocities.
    """

    def __init__(
        self,
        net: Any,
        cond: Tensor,
        null_cond: Tensor | None,
        times: Sequence[float],
        dtype: torch.dtype | None,
        ends: Mapping[float, float] | None = None,
    ):
        self.net = net
        self.conditions = cond if null_cond is None else torch.cat((null_cond.to(cond), cond))
        self.times = list(times)
        self.dtype = dtype
        self.ends = ends
        nulls = 0 if null_cond is None else len(null_cond)
        per_time, batch = len(self.conditions), len(cond)
        self.per_time = per_time
        self.guided: slice | Tensor = slice(0, per_time)
        if nulls == 1 and batch > 1:
            self.guided = torch.tensor([0] * batch + list(range(1, per_time)), device=cond.device)
        self.unguided = slice(nulls, per_time)
        self.held: list[float] = []
        self.times_at_once = 1

    def at(self, t: float, guided: bool) -> Any:
        """The conditioning at time ``t``: ``(null_cond, cond)``, twice the batch, if guided, else ``cond``."""
        if t not in self.held:
            self._compute(t)
        first = self.held.index(t) * self.per_time
        rows = slice(first, first + self.per_time)
        return self.conditioning.select(rows).select(self.guided if guided else self.unguided)

    def _compute(self, t: float) -> None:
        first = self.times.index(t) if t in self.times else None
        self.held = [t] if first is None else self.times[first : first + self.times_at_once]
        conditions = self.conditions.repeat(len(self.held), *[1] * (self.conditions.ndim - 1))
        self.conditioning: Any = None  # frees the last ones first
        further = {} if self.ends is None else dict(r=self._each([self.ends[time] for time in self.held]))
        self.conditioning = self.net.condition(self._each(self.held), conditions, self.dtype, **further)
        self.times_at_once = max(1, LIMIT_BYTES * len(self.held) // self.conditioning.nbytes)

    def _each(self, times: Sequence[float]) -> Tensor:
        """One number for each pair of a time and a condition."""
        return torch.tensor(times, dtype=torch.float32).repeat_interleave(self.per_time).to(self.conditions.device)

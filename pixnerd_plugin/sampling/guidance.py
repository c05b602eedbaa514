"""Classifier-free guidance in an interval of time, wrapped around a network so that solvers never see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .ahead import ConditioningAhead
from .compiled import compiled


class GuidedVelocity:
    """``v_null + g (v_cond - v_null)`` where ``t_min < t < t_max``, strictly; elsewhere ``v_cond`` alone.

    Outside the interval, and for ``g = 1``, the unconditional half is not computed. With ``t_min = 0`` the first step
    (t = 0) is unguided.

    Args:
        net: a backbone, called ``net(x, t, cond, token_grid, ...)``.
        cond, null_cond: conditions of the batch; ``null_cond`` may be None when ``scale`` is 1.
        scale: guidance scale ``g``.
        interval: ``(t_min, t_max)``.
        token_grid, field_chunk: handed to the network.
        record: keep every evaluation's patch vectors in ``tokens``, converted to this dtype.
        times: when the network will be evaluated, in order, as far as known.
        compile: compile the network (see :func:`~.compiled.compiled`).
    """

    def __init__(
        self,
        net: nn.Module,
        cond: Tensor,
        null_cond: Tensor | None,
        scale: float,
        interval: tuple[float, float],
        token_grid: tuple[int, int] | None = None,
        field_chunk: int | None = None,
        record: torch.dtype | None = None,
        times: Sequence[float] = (),
        compile: bool = False,
    ):
        if null_cond is None and scale != 1:
            raise ValueError(f'guidance_scale={scale} needs null_cond, the condition to guide away from')
        self.net = compiled(net) if compile else net
        self.compile = compile
        self.cond = cond
        self.both = None if null_cond is None else torch.cat((null_cond.to(cond).expand_as(cond), cond))
        self.scale = scale
        self.interval = interval
        self.kwargs: dict[str, Any] = dict(token_grid=token_grid, field_chunk=field_chunk)
        self.dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
        self.record = record
        self.tokens: list[Tensor] = []
        self.ahead: ConditioningAhead | None = None
        if hasattr(net, 'condition'):
            self.ahead = ConditioningAhead(net, cond, None if scale == 1 else null_cond, times, self.dtype)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Velocity of ``x (B, C, H, W)`` at time ``t``, in ``x``'s dtype."""
        inside = self.interval[0] < t < self.interval[1]
        if self.scale == 1 or self.both is None or not inside:
            return self._evaluate(x, t, self.cond, guided=False)
        null, cond = self._evaluate(torch.cat((x, x)), t, self.both, guided=True).chunk(2)
        return null + self.scale * (cond - null)

    def _evaluate(self, x: Tensor, t: float, cond: Tensor, guided: bool) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        kwargs = dict(self.kwargs)
        if self.record is not None:
            kwargs['return_tokens'] = True
        if self.ahead is not None:
            conditioning = self.ahead.at(t, guided)
            # A compiler asks where in memory a view begins, and compiles anew when that changes.
            kwargs['conditioning'] = conditioning.clone() if self.compile else conditioning
        out = self.net(x.to(self.dtype), times, cond, **kwargs)
        if self.record is not None:
            out, s = out
            # (branches, B, L, D), the unconditional branch first.
            self.tokens.append(s.to(self.record).unflatten(0, (-1, len(self.cond))))
        return out.to(x.dtype)

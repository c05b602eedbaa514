"""A network with its conditions bound, as solvers and guidance ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.functional.prediction import time_of

from .compiled import CompiledNetwork
from .precomputed import PrecomputedConditioning
from .recorder import Recorder


class ConditionedNetwork:
    """Velocities of the conditional and the unconditional branch at one time, in the dtype of the picture.

    The network computes in its own dtype; both branches are one batch.

    Args:
        net: a backbone, called ``net(x, t, cond, token_grid=..., field_chunk=...)``, and ``blend=...`` if not 0.
        cond: conditions of the batch.
        null_cond: null conditions, of the batch or of batch size 1; None if nothing is guided.
        times: when the network will be evaluated, in order, as far as known.
        ends: where the step from each time ends, for a network of mean velocities.
        token_grid, field_chunk, blend: handed to the network.
        recorder: is told the patch vectors of every evaluation.
        compile: compile the network (see :class:`~.compiled.CompiledNetwork`).
    """

    def __init__(
        self,
        net: nn.Module,
        cond: Tensor,
        null_cond: Tensor | None,
        times: Sequence[float] = (),
        token_grid: tuple[int, int] | None = None,
        field_chunk: int | None = None,
        recorder: Recorder | None = None,
        compile: bool = False,
        blend: float = 0.0,
        ends: Mapping[float, float] | None = None,
    ):
        self.net: Any = CompiledNetwork(net) if compile else net
        self.prediction: str = getattr(net, 'prediction', 'velocity')
        self.dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
        self.cond = cond
        self.settings: Any = dict(
            times=times, token_grid=token_grid, field_chunk=field_chunk, compile=compile, blend=blend
        )
        self.null_and_cond = None if null_cond is None else torch.cat((null_cond.to(cond).expand_as(cond), cond))
        self.token_grid = token_grid
        # A user's own network may know nothing of blending.
        self.decoding = dict(field_chunk=field_chunk, **(dict(blend=blend) if blend else {}))
        self.recorder = recorder
        self.ends = ends
        # A user's own network may have no share that depends on time and condition alone.
        self.precomputed = (
            PrecomputedConditioning(net, cond, null_cond, times, self.dtype, ends)
            if hasattr(net, 'condition')
            else None
        )

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition to guide away from."""
        return self.null_and_cond is not None

    def conditional(self, x: Tensor, t: float) -> Tensor:
        """Velocity of ``x (B, C, H, W)`` under the condition."""
        return self._velocity(x, t, self.cond, guided=False)

    def both(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Velocities of ``x (B, C, H, W)`` under the null condition and under the condition."""
        assert self.null_and_cond is not None, 'guidance checks has_null'
        null, cond = self._velocity(torch.cat((x, x)), t, self.null_and_cond, guided=True).chunk(2)
        return null, cond

    def still(self, x: Tensor) -> Tensor:
        """A velocity of 0, without asking the network."""
        if self.recorder is not None:
            self.recorder.skip()
        return torch.zeros_like(x)

    def of(self, net: nn.Module) -> ConditionedNetwork:
        """Another network under the same condition and settings; it records nothing."""
        return ConditionedNetwork(net, self.cond, None, **self.settings)

    def _velocity(self, x: Tensor, t: float, cond: Tensor, guided: bool) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        known: dict[str, Any] = {}
        if self.precomputed is not None:
            known['conditioning'] = self.precomputed.at(t, guided)
        elif self.ends is not None:
            known['r'] = torch.full_like(times, self.ends[t])
        pixels = x.to(self.dtype)
        if self.recorder is None:
            velocity = self.net(pixels, times, cond, token_grid=self.token_grid, **self.decoding, **known)
        else:
            s, _ = self.net.encode(pixels, times, cond, self.token_grid, **known)
            grid = self.net.grid_of(pixels, self.token_grid)
            velocity = self.net.decode(s, pixels, grid, **self.decoding, **time_of(self.net, times))
            self.recorder.record(s, branches=2 if guided else 1)
        return velocity.to(x.dtype)

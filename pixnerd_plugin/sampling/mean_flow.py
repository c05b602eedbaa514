"""A picture in one to eight steps, from a network of mean velocities."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pixnerd_plugin.registry import MODELS

from .samplers import FlowSampler


@MODELS.register_module()
class MeanFlowSampler(FlowSampler):
    """Steps ``x_r = x_t + (r - t) u(x_t, t, r)`` with the network's mean velocity ``u``, one evaluation each.

    The network has learned its guidance (``MeanFlowLoss``), so there is none here.

    Args:
        num_steps: number of steps.
        timeshift: as for all samplers.
        compile: as for all samplers.
        noise_limit: as for all samplers.
    """

    parts: ClassVar[dict[str, str]] = {}
    stored = {name: FlowSampler.stored[name] for name in ('num_steps', 'timeshift', 'noise_limit')}

    def __init__(self, num_steps: int = 1, timeshift: float = 1.0, compile: bool = False, noise_limit: float = 0.0):
        super().__init__(num_steps, 1.0, (0.0, 1.0), timeshift, compile, noise_limit)
        self.ends = dict(zip(self.times, self.times[1:], strict=False))

    def sample(self, net: Any, noise: Tensor, cond: Tensor, null_cond: Tensor | None = None, **options: Any) -> Any:
        """As for all samplers; ``null_cond`` is not used.

        Raises:
            ValueError: if the network gives the velocity at a time only.
        """
        if not getattr(net, 'step_end', True):
            raise ValueError(
                'MeanFlowSampler draws from networks that were trained with MeanFlowLoss (step_end=True), and this one '
                'was not; use AdamsFlowSampler or EulerFlowSampler'
            )
        return super().sample(net, noise, cond, **options)

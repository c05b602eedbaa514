"""Classifier-free guidance in an interval of time, wrapped around a network so that solvers never see it."""

from __future__ import annotations

from torch import Tensor

from .network import ConditionedNetwork


def guide(null: Tensor, cond: Tensor, scale: float) -> Tensor:
    """``v_null + g (v_cond - v_null)``, of velocities of any shape."""
    return null + scale * (cond - null)


class ClassifierFreeGuidance:
    """The guided velocity where ``t_min < t < t_max``, strictly; elsewhere, and for ``g = 1``, the conditional one.

    With ``t_min = 0`` the first step (t = 0) is unguided, as published. Where nothing is guided the unconditional half
    is not computed.

    Args:
        net: the network with its conditions.
        scale: guidance scale ``g``.
        interval: ``(t_min, t_max)``.

    Raises:
        ValueError: if guidance is on and the network has no null condition.
    """

    def __init__(self, net: ConditionedNetwork, scale: float, interval: tuple[float, float]):
        if scale != 1 and not net.has_null:
            raise ValueError(f'guidance_scale={scale} needs null_cond, the condition to guide away from')
        self.net = net
        self.scale = scale
        self.interval = interval
        self.prediction = net.prediction

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Velocity of ``x (B, C, H, W)`` at time ``t``, in ``x``'s dtype."""
        if self.scale == 1 or not self.interval[0] < t < self.interval[1]:
            return self.net.conditional(x, t)
        return guide(*self.net.both(x, t), self.scale)

"""Guidance as parts: how the velocity under the condition is led away from another one, such as the unconditional.

A part combines the two velocities. Where it acts (the interval) and how strongly (the scale) are the sampler's, so that
every part has both, and a scale of 1 is always the conditional velocity alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pixnerd_plugin.formats.schema import Rule, integer, number
from pixnerd_plugin.registry import MODELS

from .network import ConditionedNetwork

Pair = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""``(x, t)`` to the velocity to be led away from and the one under the condition, each shaped like ``x``."""


def guide(away: Tensor, cond: Tensor, scale: float) -> Tensor:
    """``v_away + g (v_cond - v_away)``, of velocities of any shape."""
    return away + scale * (cond - away)


class Run:
    """What a guidance keeps in one sampling run.

    A number that couples the pixels of a picture, such as a norm, is computed once, while sampling. When the run is
    rendered at other pixels it is read back, so that those pixels get what the sampled ones got.

    Args:
        numbers: ``(n, B)``, in order, to read back; by default they are computed.

    Attributes:
        carried: what :meth:`Guidance.combine` wants to find at the next evaluation.
        numbers: those of the run, each ``(B,)``.
    """

    def __init__(self, numbers: Tensor | None = None):
        self.carried: Tensor | None = None
        self.numbers: list[Tensor] = []
        self._known = None if numbers is None else iter(numbers)

    def number(self, compute: Callable[[], Tensor]) -> Tensor:
        """One number of each picture, ``(B, 1, 1, 1)``: that of ``compute() -> (B,)``, or the known one."""
        value = compute() if self._known is None else next(self._known)
        self.numbers.append(value)
        return value.view(-1, 1, 1, 1)


class Guidance(ABC):
    """One way of guiding; subclasses define :meth:`combine`.

    Args:
        scale: guidance scale ``g`` in place of the sampler's ``guidance_scale``.
        interval: ``(t_min, t_max)`` in place of the sampler's ``guidance_interval``.
    """

    role = 'guidance'
    stored: ClassVar[dict[str, Rule]] = {}
    needs_null: ClassVar[bool] = True
    """Whether it leads away from the null condition."""
    numbers: ClassVar[int] = 0
    """How many numbers of each picture :meth:`combine` takes from its run."""
    recordable: ClassVar[bool] = True
    """Whether the run is a function of one network's patch vectors, as a field keeps them."""
    zero_steps: int = 0
    """So many first steps stand still."""

    def __init__(self, scale: float | None = None, interval: Sequence[float] | None = None):
        self.scale = scale
        self.interval = interval

    def velocities(self, net: ConditionedNetwork) -> Pair:
        """What to lead away from and the conditional velocity, for one run of ``net``."""
        return net.both

    @abstractmethod
    def combine(self, away: Tensor, cond: Tensor, x: Tensor, t: float, scale: float, run: Run) -> Tensor:
        """The guided velocity.

        Args:
            away, cond: velocities ``(B, C, H, W)``.
            x: the picture they are of, at time ``t``.
            scale: guidance scale ``g``; not 1.
            run: memory of this sampling run; whatever couples pixels goes through :meth:`Run.number`.
        """


@MODELS.register_module()
class ClassifierFreeGuidance(Guidance):
    """``v_null + g (v_cond - v_null)``, as published."""

    def combine(self, away: Tensor, cond: Tensor, x: Tensor, t: float, scale: float, run: Run) -> Tensor:
        return guide(away, cond, scale)


@MODELS.register_module()
class CFGZeroStar(Guidance):
    """CFG-Zero*: ``s v_null + g (v_cond - s v_null)``, ``s = <v_cond, v_null> / |v_null|^2`` (Fan et al. 2025,
    arXiv 2503.18886).

    ``s`` is one number of each picture: the multiple of the unconditional velocity that is nearest to the conditional.
    (ComfyUI's node multiplies the unconditional *image estimate* by it, which adds ``(1 - g)(s - 1) x`` to its result.)

    Args:
        zero_steps: so many first steps stand still, whatever the interval (the paper's zero-init; 1 there).
        more: ``scale`` and ``interval``, as in :class:`Guidance`.
    """

    stored = dict(zero_steps=integer(0, 1000))
    numbers = 1

    def __init__(self, zero_steps: int = 0, scale: float | None = None, interval: Sequence[float] | None = None):
        super().__init__(scale, interval)
        if zero_steps < 0:
            raise ValueError(f'CFGZeroStar: zero_steps={zero_steps} must be 0 or more')
        self.zero_steps = zero_steps

    def combine(self, away: Tensor, cond: Tensor, x: Tensor, t: float, scale: float, run: Run) -> Tensor:
        s = run.number(lambda: _dot(cond, away) / _dot(away, away).clamp(min=1e-12))
        return guide(s * away, cond, scale)


@MODELS.register_module()
class AdaptiveProjectedGuidance(Guidance):
    """APG (Sadat et al. 2025, arXiv 2410.02416): guidance that does not burn colours in at large scales.

    On the image estimates ``d = x + (1 - t) v``: the difference ``d_cond - d_null`` gathers momentum, its norm is
    limited, its part parallel to ``d_cond`` is scaled by ``eta``, and ``g - 1`` times the rest is added to ``d_cond``.
    (ComfyUI's node adds ``g`` times: its scale is one less for the same picture.)

    Args:
        eta: factor of the parallel part; 1 keeps it as it is.
        norm_threshold: limit of the norm of a whole picture's difference; 0 for none. It grows with the root of the
            number of pixels: the paper's 5 to 15 are for latents of 4x64x64.
        momentum: share of the last difference that is added to the next; negative in the paper; 0 for none.
        scale, interval: as in :class:`Guidance`.
    """

    stored = dict(eta=number(-1000.0, 1000.0), norm_threshold=number(0.0, 1e6), momentum=number(-10.0, 10.0))
    numbers = 2

    def __init__(
        self,
        eta: float = 0.0,
        norm_threshold: float = 0.0,
        momentum: float = 0.0,
        scale: float | None = None,
        interval: Sequence[float] | None = None,
    ):
        super().__init__(scale, interval)
        if norm_threshold < 0:
            raise ValueError(
                f'AdaptiveProjectedGuidance: norm_threshold={norm_threshold} must be 0, for none, or above'
            )
        self.eta = eta
        self.norm_threshold = norm_threshold
        self.momentum = momentum

    def combine(self, away: Tensor, cond: Tensor, x: Tensor, t: float, scale: float, run: Run) -> Tensor:
        difference = (1 - t) * (cond - away)
        if self.momentum and run.carried is not None:
            difference = difference + self.momentum * run.carried
        run.carried = difference
        # Both numbers are taken in any case, so that a run has as many whatever the settings.
        limit = self.norm_threshold or float('inf')
        difference = difference * run.number(lambda: (limit / _dot(difference, difference).sqrt()).clamp(max=1))
        image = x + (1 - t) * cond
        along = run.number(lambda: _dot(difference, image) / _dot(image, image).clamp(min=1e-24))
        difference = difference + (self.eta - 1) * along * image
        # At t = 1, which Heun's last evaluation asks for, the estimate is x itself and leaves nothing to guide.
        return cond + (scale - 1) / ((1 - t) or 1.0) * difference


class GuidedVelocity:
    """The guided velocity where ``t_min < t < t_max``, strictly; elsewhere, and for ``g = 1``, the conditional one.

    With ``t_min = 0`` the first step (t = 0) is unguided, as published. Where nothing is guided the other velocity is
    not computed.

    Args:
        guidance: the part that combines.
        net: the network with its conditions.
        scale: guidance scale ``g``.
        interval: ``(t_min, t_max)``.
        still_until: before this time the velocity is 0, unless ``g = 1``.

    Raises:
        ValueError: if guidance is on and the network has no null condition where it needs one.
    """

    def __init__(
        self,
        guidance: Guidance,
        net: ConditionedNetwork,
        scale: float,
        interval: tuple[float, float],
        still_until: float = 0.0,
    ):
        if scale != 1 and guidance.needs_null and not net.has_null:
            raise ValueError(f'guidance_scale={scale} needs null_cond, the condition to guide away from')
        self.guidance = guidance
        self.net = net
        self.scale = scale
        self.interval = interval
        self.still_until = still_until
        self.prediction = net.prediction
        self.run = Run()
        self.velocities = net.both if scale == 1 else guidance.velocities(net)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Velocity of ``x (B, C, H, W)`` at time ``t``, in ``x``'s dtype."""
        if self.scale == 1:
            return self.net.conditional(x, t)
        if t < self.still_until:
            return self.net.still(x)
        if not self.interval[0] < t < self.interval[1]:
            return self.net.conditional(x, t)
        return self.guidance.combine(*self.velocities(x, t), x, t, self.scale, self.run)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products ``(B,)`` of pictures ``(B, C, H, W)``, in float32."""
    return torch.einsum('bi,bi->b', a.flatten(1).float(), b.flatten(1).float())

"""MeanFlow: learn the mean velocity over a step, so that one to four steps draw a picture (arXiv 2505.13447).

Time runs from noise (0) to image (1). ``u(x_t, t, r)`` is the mean over ``[t, r]`` of the velocity ``v``, so that one
step is ``x_r = x_t + (r - t) u``. The derivative of ``(r - t) u`` along the path gives ``u = v + (r - t) du/dt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixnerd_plugin.functional.prediction import MIN_TIME_LEFT, time_of
from pixnerd_plugin.registry import MODELS, build

from .flow_match_repa import FlowMatchREPALoss, NoisyBatch

Velocities = tuple[Tensor, Tensor]
"""Those of the base picture and of the pixels that the head is evaluated on, each ``(B, C, H, W)``."""


@MODELS.register_module()
class MeanFlowLoss(FlowMatchREPALoss):
    """``w (u - (r - t) sg(du/dt) - v)^2``, ``sg`` without gradient, and the other terms of the base class.

    ``du/dt`` is the derivative along the path: a Jacobian-vector product through transformer and head. The guidance is
    in ``v``, so that sampling needs none. ``v`` is the guided velocity of ``velocity_teacher``, a trained network that
    is distilled. Without one it is ``x - e + (1 - 1/g) (u(x, t, t | c) - u(x, t, t | null))`` from the data, whose mean
    is the guided velocity of scale ``g``; the path then follows ``u(x, t, t | c)`` (arXiv 2512.02012).

    Args:
        args: as for :class:`~.flow_match_repa.FlowMatchREPALoss`, as are ``kwargs``.
        guidance_scale: scale ``g`` of the guidance that is learned; 1 for none.
        guidance_interval: it is learned where ``t_min <= t < t_max``.
        equal_share: share of the pictures with ``r = t``: flow matching, which all others rest on.
        end_share: share whose steps end at the image: ``r = 1``.
        whole_share: share with the one step from noise to image: ``t = 0`` and ``r = 1``. All others have two of the
            drawn times as ``t`` and ``r``.
        flow_batches: the first so many batches have ``r = t`` only, for a network that has to learn the velocity first:
            from scratch, or because it predicts the image and its weights are those of one that does not.
        warmup: over so many batches after those the steps grow from no length to their own. Each length is learned
            from shorter ones.
        noise_limit: cut the drawn noise to this many standard deviations on both sides, as the sampler's setting of
            this name does; 0 leaves it. A field gives the rarest values wrongly, and their derivative more so.
        reach: above 0, no derivative but a difference: of ``u`` here, and where the path is after this share ``a`` of
            the step, ``d = a (r - t)``: ``u = v + (r - t - d) (u_d - u) / d``, ``v`` the mean of the path's velocities
            here and there (of both ends only with a teacher). Less noise, for an error in the path; the fast attention
            serves (AlphaFlow, arXiv 2510.20771).
        power, offset: the weight of a picture is ``w = 1 / (e + offset)^power``, ``e`` its mean squared error. With a
            power above 0.5 (1 in MeanFlow) a picture counts for less the further off it is.
        velocity_teacher: a network with ``encode`` and ``decode``, or a registry dict. It is not a submodule, so it
            stays out of checkpoints and the EMA.

    Raises:
        ValueError: if a share is negative, or they are more than 1 together.
    """

    batches: Tensor

    def __init__(
        self,
        *args: Any,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        equal_share: float = 0.25,
        end_share: float = 0.25,
        whole_share: float = 0.15,
        flow_batches: int = 0,
        warmup: int = 0,
        noise_limit: float = 0.0,
        reach: float = 0.0,
        power: float = 1.0,
        offset: float = 0.01,
        velocity_teacher: Any = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.shares = (equal_share, end_share, whole_share)
        if min(self.shares) < 0 or sum(self.shares) > 1:
            raise ValueError(
                f'MeanFlowLoss: equal_share, end_share and whole_share are {self.shares}; each must be 0 or more, and '
                'all at most 1 together'
            )
        if not 0 <= reach < 1:
            raise ValueError(f'MeanFlowLoss: reach={reach} must be a share of the step, 0 or more and below 1')
        self.reach = reach
        self.flow_batches = flow_batches
        self.warmup = warmup
        self.noise_limit = noise_limit
        self.register_buffer('batches', torch.zeros((), dtype=torch.long))
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.power = power
        self.offset = offset
        # In a tuple, so that nn.Module does not register it.
        self._velocity_teacher = (build(MODELS, velocity_teacher),)

    @property
    def velocity_teacher(self) -> Any:
        return self._velocity_teacher[0]

    def draw_steps(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Beginnings and ends ``t <= r`` of steps, each ``(batch,)``; so many of the first have ``r = t``."""
        one, other = self.draw_time(batch, device), self.draw_time(batch, device)
        t, r = torch.minimum(one, other), torch.maximum(one, other)
        # What a share has beyond whole pictures is drawn, for the sake of small batches.
        shares = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        equal, end, whole = (shares * batch + torch.rand((), dtype=torch.float64)).long().clamp(max=batch).tolist()
        t[:end] = one[:end]
        r[:equal], r[equal:end] = one[:equal], 1
        t[end:whole], r[end:whole] = 0, 1
        since = self.batches - self.flow_batches
        if self.warmup:
            r = t + (r - t) * (since / self.warmup).clamp(0, 1)
        return (t, t, batch) if since < 0 else (t, r, equal)

    def forward(
        self,
        net: Any,
        images: Tensor,
        cond: Tensor,
        null_cond: Tensor | None = None,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        teacher_features: Tensor | None = None,
        drop_mask: Tensor | None = None,
        r: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms in float32, all weighted; arguments that are not named here are those of the base class.

        Args:
            net: the backbone, built with ``step_end=True``.
            t, r: where the steps begin and end, ``(B,)``, ``t <= r``; drawn if neither is given. With ``t`` alone,
                ``r = t``: the error of the velocity, as a validation asks for it.

        Returns:
            ``loss_flow``; ``error``, its mean square without weights and without gradient, for logs; and the further
            terms of the base class, in which ``u - (r - t) du/dt`` is the velocity.

        Raises:
            ValueError: if ``r`` is given without ``t``, or there is guidance and no ``null_cond``.
        """
        if t is None and r is not None:
            raise ValueError('MeanFlowLoss takes r, the ends of the steps, only with t, their beginnings')
        if self.guidance_scale != 1 and null_cond is None:
            raise ValueError(f'MeanFlowLoss: guidance_scale={self.guidance_scale} needs null_cond')
        equal = 0
        if t is None:
            t, r, equal = self.draw_steps(len(images), images.device)
            self.batches += 1
        elif r is None:
            r, equal = t, len(t)
        if noise is None and self.noise_limit:
            height, width = (side // self.max_density for side in images.shape[2:])
            noise = images.new_empty(*images.shape[:2], height, width).normal_()
            noise = noise.clamp(-self.noise_limit, self.noise_limit)
        if getattr(net, 'prediction', 'velocity') == 'image':
            # Nearer to the image, the velocity of an exact image would not be the true one.
            t = t.clamp(max=1 - MIN_TIME_LEFT)
            r = torch.maximum(t, r)
        batch = self.draw(net, images, cond, null_cond, noise, t, teacher_features, drop_mask)
        rest = slice(equal, None)
        target, path = self._velocities(net, batch, null_cond, rest)
        # What u is corrected by: change - factor u. Before u itself, whose activations are kept.
        change, factor = torch.zeros_like(target), torch.zeros_like(t).view(-1, 1, 1, 1)
        if equal < len(t):
            with torch.no_grad():
                if self.reach:
                    null = null_cond if null_cond is None or len(null_cond) == 1 else null_cond[rest]
                    there, target[rest] = self._go_on(net, batch.rows(rest), r[rest], path, target[rest], null)
                    factor[rest], later = later_velocity(net, there, t[rest], r[rest])
                    change[rest] = factor[rest] * later
                else:
                    slope = path_derivative(net, batch.rows(rest), r[rest], path)
                    change[rest] = (r - t)[rest].view(-1, 1, 1, 1) * slope
        s, features = net.encode(batch.x_t, t, batch.cond, r=r, feature_layer=self._aligned(batch))
        u = net.decode(s, batch.pixels, net.grid_of(batch.x_t), batch.positions, **time_of(net, t)).float()
        velocity = u - (change - factor * u.detach())
        error = (velocity - target).square().mean((1, 2, 3))
        weight = (error.detach() + self.offset) ** -self.power
        self.per_image = dict(t=t, loss_flow=(weight * error).detach(), error=error.detach())
        losses = dict(loss_flow=(weight * error).mean(), error=error.detach().mean())
        return losses | self._further_terms(batch, velocity, target, features)

    @torch.no_grad()
    def _velocities(
        self, net: Any, batch: NoisyBatch, null_cond: Tensor | None, rest: slice
    ) -> tuple[Tensor, Velocities]:
        """The target ``v`` of the pixels, and the velocities of the paths of pictures ``rest``; in float32."""
        teacher, scale = self.velocity_teacher, self.guidance_scale
        source = net if teacher is None else teacher
        base, fine = _velocities_at(source, batch, batch.cond, rest)
        # What guidance of scale 2 adds.
        added_base, added = torch.zeros_like(base), torch.zeros_like(fine)
        if scale != 1 and null_cond is not None:
            null_base, null = _velocities_at(source, batch, null_cond.to(batch.cond).expand_as(batch.cond), rest)
            low, high = self.guidance_interval
            # With the lower end, whose velocity is the limit from inside: the step from noise begins there.
            is_guided = ((batch.t >= low) & (batch.t < high)).view(-1, 1, 1, 1)
            added_base, added = is_guided[rest] * (base - null_base), is_guided * (fine - null)
        if teacher is None:
            return batch.velocity.float() + (1 - 1 / scale) * added, (base, fine[rest])
        guided = fine + (scale - 1) * added
        return guided, (base + (scale - 1) * added_base, guided[rest])

    def _go_on(
        self, net: Any, batch: NoisyBatch, r: Tensor, path: Velocities, target: Tensor, null_cond: Tensor | None
    ) -> tuple[NoisyBatch, Tensor]:
        """The batch a share ``reach`` of the step later, and the target's mean over that share."""
        length = self.reach * (r - batch.t)
        there = batch.moved(path, length)
        if self.velocity_teacher is None:
            # The target is that of one pair of noise and image, which a second one would not make better.
            return there, target
        # A step of Heun's method.
        later, (base, fine) = self._velocities(net, there, null_cond, slice(None))
        return batch.moved(((path[0] + base) / 2, (path[1] + fine) / 2), length), (target + later) / 2


def path_derivative(net: Any, batch: NoisyBatch, r: Tensor, velocities: Velocities) -> Tensor:
    """``du/dt`` of the pixels in float32, ``r`` fixed, while time runs and everything moves at ``velocities``."""
    # By the class, because a compiled method cannot be differentiated forward.
    kind = type(net)

    def mean_velocity(x_t: Tensor, pixels: Tensor, t: Tensor) -> Tensor:
        s, _ = kind.encode(net, x_t, t, batch.cond, r=r)
        return kind.decode(net, s, pixels, net.grid_of(x_t), batch.positions, **time_of(net, t))

    base, fine = (velocity.to(batch.x_t) for velocity in velocities)
    # Torch's fast attention has no forward-mode rule.
    with sdpa_kernel(SDPBackend.MATH):
        slope = jvp(mean_velocity, (batch.x_t, batch.pixels, batch.t), (base, fine, torch.ones_like(batch.t)))[1]
    return slope.float() if slope.dtype != torch.float64 else slope


def later_velocity(net: Any, there: NoisyBatch, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """``(r - s) / (s - t)``, ``(B, 1, 1, 1)``, and ``u`` of the pixels at the times ``s`` of ``there``, in float32."""
    tokens, _ = net.encode(there.x_t, there.t, there.cond, r=r)
    grid = net.grid_of(there.x_t)
    later = net.decode(tokens, there.pixels, grid, there.positions, **time_of(net, there.t)).float()
    factor = torch.where(there.t > t, (r - there.t) / (there.t - t), 0)
    if getattr(net, 'prediction', 'velocity') == 'image':
        # Nearer to the image its velocity is not the true one, and u = v will do.
        factor = torch.where(there.t <= 1 - MIN_TIME_LEFT, factor, 0)
    return factor.view(-1, 1, 1, 1), later


def _velocities_at(net: Any, batch: NoisyBatch, cond: Tensor, rest: slice) -> Velocities:
    """Those of the base pictures ``rest``, which is all that a path needs, and of all pixels."""
    s, _ = net.encode(batch.x_t, batch.t, cond)
    grid, time = net.grid_of(batch.x_t), time_of(net, batch.t)
    fine = net.decode(s, batch.pixels, grid, batch.positions, **time).float()
    if batch.positions is None or not len(s[rest]):
        return fine[rest], fine
    time = {name: value[rest] for name, value in time.items()}
    return net.decode(s[rest], batch.x_t[rest], grid, **time).float(), fine

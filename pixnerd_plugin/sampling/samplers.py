"""Solvers of the probability flow ODE (and SDE) from noise at t = 0 to the image at t = 1."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from pixnerd_plugin.formats.parts import describe_part
from pixnerd_plugin.formats.schema import Rule, integer, number, one_of, sequence
from pixnerd_plugin.functional.noise import draw_noise
from pixnerd_plugin.functional.time import time_grid
from pixnerd_plugin.models.heads.anywhere import require_anywhere
from pixnerd_plugin.registry import MODELS, build

from .adams import adams_coefficients
from .field import FieldTrajectory
from .guidance import ClassifierFreeGuidance, Guidance, GuidedVelocity
from .network import ConditionedNetwork
from .recorder import Recorder

Velocity = Callable[[Tensor, float], Tensor]
"""``(x, t) -> v``, shaped like ``x``; it may have an attribute ``prediction``, that of its network."""

Draw = Callable[[Tensor], Tensor]
"""``x -> noise``, standard normal, shaped like ``x``."""


@dataclass(frozen=True)
class Step:
    """What a callback sees after each step: ``x`` at ``times[index + 1]`` and the step's first velocity, at ``t``."""

    index: int
    num_steps: int
    t: float
    start: Tensor
    velocity: Tensor
    x: Tensor

    @property
    def denoised(self) -> Tensor:
        """The image this step heads for, ``x_t + (1 - t) v``; for previews."""
        return self.start + (1 - self.t) * self.velocity


class FlowSampler:
    """One loop over the time grid; solvers override :meth:`step`.

    Args:
        num_steps: number of steps.
        guidance_scale: guidance scale; 1 turns guidance off.
        guidance_interval: guide only where ``t_min < t < t_max``, strictly.
        timeshift: shift of the time grid towards noise, ``t / (t + (1 - t) timeshift)``.
        compile: compile the network that is sampled from; the first steps then take minutes.
        noise_limit: cut the noise that sampling starts from to this many standard deviations on both sides; 0 leaves
            it as it is. A field has hardly seen the values beyond 3, and leaves coloured dots there.
        guidance: how to guide, a :class:`~.guidance.Guidance`, built or as a dict; classifier-free guidance by default.
            Its ``scale`` and ``interval``, if it has them, stand for ``guidance_scale`` and ``guidance_interval``.
        times: a time grid of its own, from 0 to 1, in place of that of ``num_steps`` and ``timeshift``.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """

    role = 'sampler'
    stored: ClassVar[dict[str, Rule]] = dict(
        num_steps=integer(1, 1000),
        guidance_scale=number(-1000.0, 1000.0),
        guidance_interval=sequence(number(-1000.0, 1000.0), 2, 2),
        timeshift=number(1e-6, 1e6),
        noise_limit=number(0.0, 100.0),
        times=sequence(number(0.0, 1.0), 2, 1001),
    )
    parts: ClassVar[dict[str, str]] = dict(guidance='guidance')
    order = 1
    deterministic = True
    ends: Mapping[float, float] | None = None
    """Where the step from each time ends, for solvers that tell the network."""

    def __init__(
        self,
        num_steps: int = 100,
        guidance_scale: float = 3.5,
        guidance_interval: Sequence[float] = (0.1, 1.0),
        timeshift: float = 1.0,
        compile: bool = False,
        noise_limit: float = 0.0,
        guidance: Guidance | Mapping[str, Any] | None = None,
        times: Sequence[float] | None = None,
    ):
        if times is not None:
            num_steps = len(times) - 1
            if num_steps < 1 or (times[0], times[-1]) != (0, 1):
                ends = f'from {times[0]:g} to {times[-1]:g}' if len(times) else 'empty'
                raise ValueError(f'times must rise from 0 to 1, and they are {ends}')
            if falls := [(t, r) for t, r in pairwise(times) if not r > t]:
                raise ValueError(f'times must rise from 0 to 1, and {falls[0][1]:g} follows {falls[0][0]:g}')
        part = _guidance(guidance)
        guidance_scale = guidance_scale if part.scale is None else part.scale
        guidance_interval = guidance_interval if part.interval is None else part.interval
        if num_steps < 1:
            raise ValueError(f'num_steps={num_steps} must be at least 1')
        if timeshift <= 0:
            raise ValueError(f'timeshift={timeshift} must be above 0')
        if not noise_limit >= 0:
            raise ValueError(f'noise_limit={noise_limit} must be 0, for none, or above')
        if len(guidance_interval) != 2 or guidance_interval[0] > guidance_interval[1]:
            raise ValueError(f'guidance_interval={guidance_interval} must be (t_min, t_max) with t_min <= t_max')
        if part.zero_steps >= num_steps:
            raise ValueError(f'zero_steps={part.zero_steps} of the guidance leaves none of num_steps={num_steps}')
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.guidance_interval = (float(guidance_interval[0]), float(guidance_interval[1]))
        self.timeshift = timeshift
        self.compile = compile
        self.noise_limit = noise_limit
        # The sampler's scale and interval count from here on, also where one of them is replaced.
        self.guidance: Guidance = copy.copy(part)
        self.guidance.scale = self.guidance.interval = None
        self.has_own_times = times is not None
        self.times: list[float] = time_grid(num_steps, timeshift).tolist() if times is None else list(map(float, times))

    @property
    def timesteps(self) -> Tensor:
        """The time grid ``(num_steps + 1,)``, from 0 to 1, in float64."""
        return torch.tensor(self.times, dtype=torch.float64)

    @property
    def coefficients(self) -> list[list[float]]:
        """Weights of the last velocities in each step, oldest first."""
        return [[1.0] for _ in range(self.num_steps)]

    def config(self) -> dict[str, Any]:
        """The registry dict that rebuilds this sampler; classifier-free guidance goes without saying."""
        description = describe_part(self)
        if description.get('guidance') == dict(type=ClassifierFreeGuidance.__name__):
            del description['guidance']
        if not self.has_own_times:
            description.pop('times', None)
        return description

    def replace(self, type: str | None = None, **settings: Any) -> FlowSampler:
        """A sampler with some settings changed; with ``type`` another one, which takes over the settings it has too.

        Raises:
            ValueError: if the sampler has no such setting, or refuses its value; the message names it.
        """
        sampler = self.__class__ if type is None else MODELS.module_dict.get(type)
        if getattr(sampler, 'role', None) != 'sampler':
            known = [name for name, part in MODELS.module_dict.items() if getattr(part, 'role', '') == 'sampler']
            raise ValueError(f'sampler {type!r} is not known; use one of {", ".join(sorted(known))}')
        known = [*sampler.stored, *sampler.parts]
        # All samplers have these, also one that takes no guidance because its network has learned it.
        own = {**FlowSampler.stored, **FlowSampler.parts, **self.stored, **self.parts}
        kept = {name: getattr(self, name) for name in own if name in known}
        if not self.has_own_times or 'num_steps' in settings or 'timeshift' in settings:
            kept.pop('times', None)
        if unknown := [name for name in settings if name not in known]:
            raise ValueError(f'{sampler.__name__} has no setting {unknown[0]}; it has {", ".join(known)}')
        return sampler(**{**kept, **settings}, compile=self.compile)

    def step(self, index: int, x: Tensor, history: Sequence[Tensor], velocity: Velocity, draw: Draw) -> Tensor:
        """Return ``x`` at ``times[index + 1]``; ``history`` holds the last velocities, this step's last."""
        return x + self.length(index) * history[-1]

    def limit(self, noise: Tensor) -> Tensor:
        """``noise`` within :attr:`noise_limit`."""
        return noise.clamp(-self.noise_limit, self.noise_limit) if self.noise_limit else noise

    def length(self, index: int) -> float:
        """Length of a step in time."""
        return self.times[index + 1] - self.times[index]

    def integrate(
        self,
        velocity: Velocity,
        x: Tensor,
        callback: Callable[[Step], None] | None = None,
        draw: Draw = torch.randn_like,
    ) -> Tensor:
        """Take ``x`` from t = 0 to t = 1 along ``velocity``.

        ``callback`` is called after each step and may raise; ``draw`` gives a stochastic solver its noise.
        """
        history: deque[Tensor] = deque(maxlen=self.order)
        for index in range(self.num_steps):
            history.append(velocity(x, self.times[index]))
            start, x = x, self.step(index, x, history, velocity, draw)
            if callback is not None:
                callback(Step(index, self.num_steps, self.times[index], start, history[-1], x))
        return x

    @torch.no_grad()
    def sample(
        self,
        net: Any,
        noise: Tensor,
        cond: Tensor,
        null_cond: Tensor | None = None,
        *,
        token_grid: tuple[int, int] | None = None,
        return_trajectory: bool = False,
        record_field: bool = False,
        field_dtype: torch.dtype = torch.bfloat16,
        field_chunk: int | None = None,
        blend: float = 0.0,
        callback: Callable[[Step], None] | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Any:
        """Sample images.

        Args:
            net: a backbone; it runs in its own dtype, the solver in the noise's.
            noise: standard normal ``(B, C, H, W)``.
            cond, null_cond: conditions ``(B,)`` or ``(B, N, width)``; ``null_cond`` may have batch size 1.
            token_grid: ``(rows, columns)`` of tokens, for pictures of another size than the trained one.
            return_trajectory: also return ``(num_steps + 1, B, C, H, W)``, noise first.
            record_field: also return a :class:`FieldTrajectory`, which renders any region at any size.
            field_dtype: dtype its patch vectors are kept in.
            field_chunk: most pixels the head evaluates at once.
            blend: joins neighbouring fields over this many base pixels on both sides of a border, 0 to 1 (see
                :mod:`~pixnerd_plugin.functional.blending`); 0, hard borders, is the published rule. Up to 0.5 it
                matters only where pixels are finer than base pixels, with a ``token_grid``.
            callback: called with a :class:`Step` after each step; what it raises ends the sampling.
            generators: CPU generators, one a picture, for a stochastic solver's noise; torch's default one otherwise.

        Returns:
            The image ``(B, C, H, W)``, not clamped; or ``(image, trajectory)``, ``(image, field)``,
            ``(image, trajectory, field)``.
        """
        if record_field and not self.deterministic:
            raise ValueError('record_field needs a deterministic solver, and this one draws noise at every step')
        if record_field:
            require_anywhere(net.head)
            if self.guidance_scale != 1 and not self.guidance.recordable:
                kind = type(self.guidance).__name__
                raise ValueError(f'record_field keeps the patch vectors of one network, and {kind} asks two')
        recorder = Recorder(field_dtype) if record_field else None
        conditioned = ConditionedNetwork(
            net,
            cond,
            None if self.guidance_scale == 1 or not self.guidance.needs_null else null_cond,
            self.times[:-1],
            token_grid,
            field_chunk,
            recorder,
            self.compile,
            blend,
            self.ends,
        )
        velocity = GuidedVelocity(
            self.guidance,
            conditioned,
            self.guidance_scale,
            self.guidance_interval,
            self.times[self.guidance.zero_steps],
        )
        noise = self.limit(noise)
        trajectory = [noise]

        def after(step: Step) -> None:
            if return_trajectory:
                trajectory.append(step.x)
            if callback is not None:
                callback(step)

        def draw(x: Tensor) -> Tensor:
            return torch.randn_like(x) if generators is None else draw_noise(generators, x.shape[1:]).to(x)

        image = self.integrate(velocity, noise, after, draw)
        result: list[Any] = [image]
        if return_trajectory:
            result.append(torch.stack(trajectory))
        if recorder is not None:
            grid = net.grid_of(noise, token_grid)
            prediction = getattr(net, 'prediction', 'velocity')
            numbers = torch.stack(velocity.run.numbers) if velocity.run.numbers else None
            result.append(
                FieldTrajectory(
                    net.head, self, noise, grid, recorder.tokens, prediction=prediction, guidance_numbers=numbers
                )
            )
        return result[0] if len(result) == 1 else tuple(result)


def _guidance(guidance: Guidance | Mapping[str, Any] | None) -> Any:
    """The guidance that a user gave, built; errors as in :class:`FlowSampler`."""
    if guidance is None:
        return ClassifierFreeGuidance()
    if isinstance(guidance, Mapping):
        kind = guidance.get('type')
        found = MODELS.get(kind) if isinstance(kind, str) else kind
        if getattr(found, 'role', None) != 'guidance':
            known = [name for name, part in MODELS.module_dict.items() if getattr(part, 'role', '') == 'guidance']
            raise ValueError(f'guidance of type {kind!r} is not known; use one of {", ".join(sorted(known))}')
        try:
            return build(MODELS, dict(guidance))
        except TypeError as error:
            raise ValueError(f'guidance: {error}') from None
    if getattr(guidance, 'role', None) != 'guidance':
        raise ValueError(f"guidance={guidance!r} must be a table such as dict(type='CFGZeroStar')")
    return guidance


@MODELS.register_module()
class EulerFlowSampler(FlowSampler):
    """Euler's method; with ``stochastic=True`` the SDE of the same marginals.

    The SDE's step, with score ``(t v - x) / (1 - t)`` and diffusion ``w = 1 - t``, is
    ``x + v dt + (t v - x) dt + sqrt(2 w dt) noise``; its last step is the ODE's.
    """

    stored = {**FlowSampler.stored, 'stochastic': one_of(True, False)}

    def __init__(self, *args: Any, stochastic: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stochastic = stochastic
        self.deterministic = not stochastic

    def step(self, index: int, x: Tensor, history: Sequence[Tensor], velocity: Velocity, draw: Draw) -> Tensor:
        euler = super().step(index, x, history, velocity, draw)
        if self.deterministic or index == self.num_steps - 1:
            return euler
        t, dt = self.times[index], self.length(index)
        return euler + dt * (t * history[-1] - x) + (2 * (1 - t) * dt) ** 0.5 * draw(x)


@MODELS.register_module()
class HeunFlowSampler(FlowSampler):
    """Heun's method, second order: the mean of the velocities at both ends of an Euler step, two evaluations a step.

    The last step of a network that predicts the image is Euler's, which ends at that image, as in JiT: the velocity at
    t = 1 would be from there to itself.
    """

    def step(self, index: int, x: Tensor, history: Sequence[Tensor], velocity: Velocity, draw: Draw) -> Tensor:
        euler = super().step(index, x, history, velocity, draw)
        if index < self.guidance.zero_steps and self.guidance_scale != 1:
            return euler
        if index == self.num_steps - 1 and getattr(velocity, 'prediction', 'velocity') == 'image':
            return euler
        end = velocity(euler, self.times[index + 1])
        return x + self.length(index) / 2 * (history[-1] + end)


@MODELS.register_module()
class AdamsFlowSampler(FlowSampler):
    """Adams-Bashforth linear multistep on the time grid, one evaluation a step (paper Sec. 4.3).

    Defaults are those of the published text-to-image model.

    Args:
        order: velocities used, 1 to 4; the first steps use as many as there are.
    """

    stored = {**FlowSampler.stored, 'order': integer(1, 4)}

    def __init__(
        self,
        num_steps: int = 25,
        order: int = 2,
        guidance_scale: float = 4.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        timeshift: float = 3.0,
        compile: bool = False,
        noise_limit: float = 0.0,
        guidance: Guidance | Mapping[str, Any] | None = None,
        times: Sequence[float] | None = None,
    ):
        super().__init__(num_steps, guidance_scale, guidance_interval, timeshift, compile, noise_limit, guidance, times)
        if not 1 <= order <= 4:
            raise ValueError(f'order={order} must be from 1 to 4')
        self.order = order
        self._coefficients = adams_coefficients(self.times, order)

    @property
    def coefficients(self) -> list[list[float]]:
        return self._coefficients

    def step(self, index: int, x: Tensor, history: Sequence[Tensor], velocity: Velocity, draw: Draw) -> Tensor:
        mean = sum(weight * v for weight, v in zip(self._coefficients[index], history, strict=True))
        return x + self.length(index) * mean

"""A step budget spent where it counts: times, and which steps are guided, chosen ahead for one network and solver.

The velocities along the true path, of a run of many steps, are kept. A solver of a few steps would add up some of them
in place of their integral, so the error of any choice of times is a quadratic form of its weights, ``e^2 = w G w``,
with ``G`` the inner products of the velocities: thousands of choices are compared without the network. The best ones
are then tried on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .adams import adams_coefficients
from .guidance import guide
from .samplers import FlowSampler


class Choice(NamedTuple):
    """Times, as numbers of the path's nodes, and the first and the last guided step; the last before it for none."""

    nodes: tuple[int, ...]
    first: int
    last: int


class Path:
    """The velocities along a path, with and without guidance.

    Args:
        times: of the nodes ``(M + 1,)``, rising from 0 to 1.
        velocities: ``(2, M + 1, B, ...)``, unguided and guided.
        interval: where the path itself is guided.
    """

    def __init__(self, times: Sequence[float], velocities: Tensor, interval: tuple[float, float]):
        self.times = np.asarray(times, np.float64)
        self.interval = interval
        flat = velocities.double().flatten(3).movedim(2, 0).flatten(1, 2)  # (B, 2 (M + 1), pixels)
        self.products = torch.einsum('bip,bjp->ij', flat, flat).numpy() / len(flat)
        # The integral by trapezoids, each guided or not, so that the path's own jumps cost nothing.
        self.exact = np.zeros((2, len(self.times)))
        middles = (self.times[:-1] + self.times[1:]) / 2
        guided = ((middles > interval[0]) & (middles < interval[1])).astype(int)
        for index, half in enumerate(np.diff(self.times) / 2):
            self.exact[guided[index], [index, index + 1]] += half

    def error(self, choice: Choice, order: int) -> float:
        """RMS over pictures of the solver's error at t = 1, if the network were asked on the true path."""
        times = self.times[list(choice.nodes)]
        weights = -self.exact.copy()
        for step, coefficients in enumerate(adams_coefficients(times.tolist(), order)):
            length = times[step + 1] - times[step]
            first = step + 1 - len(coefficients)
            for index, coefficient in enumerate(coefficients, start=first):
                guided = choice.first <= index <= choice.last
                weights[int(guided), choice.nodes[index]] += length * coefficient
        flat = weights.ravel()
        return max(float(flat @ self.products @ flat), 0.0) ** 0.5

    def choice(self, times: Sequence[float]) -> Choice:
        """The nodes nearest to ``times``, each another, guided as the path is."""
        nodes = [int(np.argmin(np.abs(self.times - t))) for t in times]
        for index in range(1, len(nodes)):
            nodes[index] = max(nodes[index], nodes[index - 1] + 1)
        nodes[-1] = len(self.times) - 1
        for index in range(len(nodes) - 2, -1, -1):
            nodes[index] = min(nodes[index], nodes[index + 1] - 1)
        chosen = self.times[nodes[:-1]]
        guided = np.flatnonzero((chosen > self.interval[0]) & (chosen < self.interval[1]))
        first, last = (int(guided[0]), int(guided[-1])) if len(guided) else (1, 0)
        return Choice(tuple(nodes), first, last)

    def settings(self, choice: Choice) -> dict[str, Any]:
        """``times`` and ``guidance_interval`` of a sampler that makes this choice."""
        times = [float(self.times[node]) for node in choice.nodes]
        if choice.last < choice.first:
            return dict(times=times, guidance_interval=(-1.0, -1.0))
        low = -1.0 if choice.first == 0 else (times[choice.first - 1] + times[choice.first]) / 2
        return dict(times=times, guidance_interval=(low, (times[choice.last] + times[choice.last + 1]) / 2))


def follow(net: Any, sampler: FlowSampler, inputs: tuple[Tensor, Tensor, Tensor], nodes: int) -> tuple[Path, Tensor]:
    """Run ``sampler``, one of many steps, and keep the velocities at about so many nodes; also return the pictures.

    Args:
        net: the backbone.
        sampler: the solver whose path is taken for the true one.
        inputs: noise ``(B, C, H, W)``, conditions and null condition.
    """
    noise, cond, null = inputs
    every = max(1, sampler.num_steps // nodes)
    times: list[float] = []
    kept: list[Tensor] = []

    def keep(x: Tensor, t: float) -> None:
        time = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        unguided = net(x, time, cond)
        guided = guide(net(x, time, null.expand_as(cond)), unguided, sampler.guidance_scale)
        times.append(t)
        kept.append(torch.stack((unguided, guided)).cpu())

    with torch.no_grad():
        keep(sampler.limit(noise), 0.0)
        image: Tensor = sampler.sample(
            net,
            noise,
            cond,
            null,
            callback=lambda step: (
                keep(step.x, sampler.times[step.index + 1])
                if (step.index + 1) % every == 0 or step.index + 1 == sampler.num_steps
                else None
            ),
        )
    return Path(times, torch.stack(kept, 1), sampler.guidance_interval), image


def moves(choice: Choice, reach: Iterable[int]) -> list[Choice]:
    """Choices that differ in one time, or in one step that is guided."""
    nodes, steps = choice.nodes, len(choice.nodes) - 1
    found = []
    for index in range(1, steps):
        for by in reach:
            moved = nodes[index] + by
            if nodes[index - 1] < moved < nodes[index + 1]:
                found.append(choice._replace(nodes=(*nodes[:index], moved, *nodes[index + 1 :])))
    if choice.first <= choice.last:
        found += [choice._replace(first=first) for first in (choice.first - 1, choice.first + 1) if first >= 0]
        found += [choice._replace(last=last) for last in (choice.last - 1, choice.last + 1) if last < steps]
    return found


def descend(
    choice: Choice, error: Callable[[Choice], float], reach: Sequence[int], budget: int
) -> tuple[Choice, float]:
    """Take any move that lowers ``error`` until none does, or ``budget`` errors were asked for."""
    best = error(choice)
    asked, last_gain = 1, 0
    queue = moves(choice, reach)
    position = 0
    while asked < budget and last_gain < len(queue):
        candidate = queue[position % len(queue)]
        found = error(candidate)
        asked, last_gain, position = asked + 1, last_gain + 1, position + 1
        if found < best:
            choice, best, last_gain = candidate, found, 0
            queue = moves(choice, reach)
    return choice, best


PLANNED = ('timeshift', 'guidance_interval', 'times')
"""Settings of a sampler that a plan takes the place of."""


def apply_plan(sampler: FlowSampler, plans: Sequence[dict[str, Any]], given: Iterable[str] = ()) -> FlowSampler:
    """The sampler with the times and the guided steps that a file's ``plans`` have for it.

    Args:
        sampler: its solver, number of steps and guidance scale choose the plan.
        plans: those of the file.
        given: names of the settings that the user gave; those that a plan chooses are refused.

    Raises:
        ValueError: if there is no plan for this sampler, or a setting was given that it chooses itself.
    """
    if chosen := [name for name in given if name in PLANNED]:
        raise ValueError(f'its plans choose the times and the guided steps; leave out {" and ".join(chosen)}')
    if 'guidance' in sampler.config():
        raise ValueError('its plans are for classifier-free guidance; leave the other guidance out')
    if not sampler.deterministic:
        raise ValueError('its plans are for solvers without noise of their own; take another one than the SDE')
    own = (type(sampler).__name__, sampler.order, sampler.guidance_scale)
    fitting = [plan for plan in plans if (plan['type'], plan['order'], plan['guidance_scale']) == own]
    for plan in fitting:
        if len(plan['times']) == sampler.num_steps + 1:
            return sampler.replace(times=plan['times'], guidance_interval=plan['guidance_interval'])
    counts = ', '.join(str(len(plan['times']) - 1) for plan in fitting) or 'none'
    raise ValueError(
        f'it has no plan of {sampler.num_steps} steps of {own[0]} (order {own[1]}) at guidance {own[2]:g}, only '
        f'of {counts}; tools/analysis_tools/solver_error.py plan makes one'
    )

"""The sampling times, and the weights of the Adams solver on them. All in float64."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial


def shift_time(t, timeshift: float):
    """Move times (any number or array) towards noise: ``t / (t + (1 - t) timeshift)``."""
    return t / (t + (1 - t) * timeshift)


def time_grid(num_steps: int, timeshift: float = 1.0) -> np.ndarray:
    """Return the times ``(num_steps + 1,)`` from 0 (noise) to 1 (image): evenly spaced, then shifted."""
    return shift_time(np.linspace(0, 1, num_steps + 1), timeshift)


def adams_coefficients(times: np.ndarray, order: int) -> list[list[float]]:
    """Return for each step the weights of the last velocities, oldest first; they sum to 1.

    The Lagrange polynomial through the last ``min(order, step + 1)`` velocities, integrated exactly over the step and
    divided by its length. (The release evaluates these in float32, off by up to 1.5e-4 at order 4.)
    """
    coefficients = []
    for i in range(len(times) - 1):
        start, length = times[i], times[i + 1] - times[i]
        # In units of the step, [t_i, t_i+1] is [0, 1]: well conditioned on every grid.
        nodes = (times[max(0, i + 1 - order) : i + 1] - start) / length
        weights = []
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            basis = Polynomial.fromroots(others) / np.prod(node - others) if len(others) else Polynomial([1.0])
            antiderivative = basis.integ()
            weights.append(float(antiderivative(1.0) - antiderivative(0.0)))
        coefficients.append(weights)
    return coefficients

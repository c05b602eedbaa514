"""Weights of the Adams-Bashforth solver on an uneven time grid, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import Polynomial


def adams_coefficients(times: Sequence[float], order: int) -> list[list[float]]:
    """Return for each step between ``times`` the weights of the last velocities, oldest first; they sum to 1.

    The Lagrange polynomial through the last ``min(order, step + 1)`` velocities, integrated exactly over the step and
    divided by its length. (The release evaluates these in float32, off by up to 1.5e-4 at order 4.)
    """
    grid = np.asarray(times, dtype=np.float64)
    coefficients = []
    for i in range(len(grid) - 1):
        start, length = grid[i], grid[i + 1] - grid[i]
        # In units of the step, [t_i, t_i+1] is [0, 1]: well conditioned on every grid.
        nodes = (grid[max(0, i + 1 - order) : i + 1] - start) / length
        weights = []
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            basis = Polynomial.fromroots(others) / np.prod(node - others) if len(others) else Polynomial([1.0])
            antiderivative = basis.integ()
            weights.append(float(antiderivative(1.0) - antiderivative(0.0)))
        coefficients.append(weights)
    return coefficients

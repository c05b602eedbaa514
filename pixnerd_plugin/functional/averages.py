"""Power-function averages of weights over a training (EDM2, Karras et al., 2024, Sec. 3): the mathematics.

An average at step ``t`` weighs the weights of step ``s`` by ``p(s) = (g + 1) s^g / t^(g + 1)``. Its length is named by
``sigma_rel``, the standard deviation of that profile as a share of ``t``. Any profile is nearly a sum of others, so the
average of any length can be built afterwards from those that were stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# The standard deviation of s^g is largest for g = 0.
MAX_SIGMA_REL = 12**-0.5


def exponent(sigma_rel: float) -> float:
    """The ``g`` whose profile has this relative standard deviation: ``sigma^2 = (g + 1) / ((g + 2)^2 (g + 3))``.

    Raises:
        ValueError: if there is none.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise ValueError(f'sigma_rel={sigma_rel} must be above 0 and below {MAX_SIGMA_REL:.3f}')
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(step: int, g: float) -> float:
    """The share of the old average that is kept at ``step``, counted from 1: ``(1 - 1/t)^(g + 1)``."""
    return (1 - 1 / step) ** (g + 1)


def combination(stored: Sequence[tuple[float, float]], target: tuple[float, float]) -> tuple[list[float], float]:
    """The sum of stored profiles that is nearest to another, by least squares (EDM2, App. C).

    Args:
        stored: ``(step, g)`` of each stored average.
        target: ``(step, g)`` of the wanted one.

    Returns:
        The factor of each stored average, and the distance of the profiles relative to the wanted one's norm.
    """
    steps, powers = (np.array(values, dtype=np.float64) for values in zip(*stored, strict=True))
    a = _products(steps[:, None], powers[:, None], steps[None], powers[None])
    b = _products(steps, powers, *target)
    # Neighbours are nearly the same profile: least squares keep the factors small.
    factors = np.linalg.lstsq(a, b, rcond=1e-10)[0]
    norm = _products(*target, *target)
    error = max(0.0, float(factors @ a @ factors - 2 * factors @ b + norm)) / float(norm)
    return factors.tolist(), error**0.5


def _products(t_a: Any, g_a: Any, t_b: Any, g_b: Any) -> Any:
    """Inner products of profiles, ``int p_a p_b ds``."""
    ratio = t_a / t_b
    # As powers of the ratio of the steps, because powers of the steps overflow.
    shrunk = np.where(t_a < t_b, ratio ** np.where(t_a < t_b, g_b, 0), ratio ** np.where(t_a < t_b, 0, -g_a))
    return (g_a + 1) * (g_b + 1) * shrunk / ((g_a + g_b + 1) * np.maximum(t_a, t_b))

"""Time ``t``, 0 at noise and 1 at the image: a sampler's grid, the shift towards noise, and the features of a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import kept

NUM_FREQUENCIES = 128


def shift_time(t, timeshift: float):
    """Move a time (a number or a tensor) towards noise: ``t / (t + (1 - t) timeshift)``."""
    return t / (t + (1 - t) * timeshift)


def time_grid(num_steps: int, timeshift: float = 1.0) -> Tensor:
    """Return the times ``(num_steps + 1,)``, float64, from 0 (noise) to 1 (image): evenly spaced, then shifted."""
    index = torch.arange(num_steps + 1, dtype=torch.float64, device='cpu')
    return shift_time(index / num_steps, timeshift)


def time_features(t: Tensor) -> Tensor:
    """Return ``[cos(t f_k), sin(t f_k)]``, ``(B, 256)``, of times ``t (B,)``; ``f_k = 10 ** (-k / 128)``.

    In float32, or in float64 for times in float64.
    """
    exact = t if t.dtype == torch.float64 else t.float()
    angles = torch.outer(exact, _frequencies(exact.dtype, exact.device))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@kept
def _frequencies(dtype: torch.dtype, device: torch.device) -> Tensor:
    exponents = torch.arange(NUM_FREQUENCIES, dtype=dtype, device=device) / NUM_FREQUENCIES
    return 10.0**-exponents

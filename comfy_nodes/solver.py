"""The Adams solver and the guidance interval in ComfyUI's terms. Needs nothing of ComfyUI: it hands everything in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from pixnerd_plugin.functional.time import time_grid
from pixnerd_plugin.sampling.adams import adams_coefficients

# ComfyUI's sigmas are float32, so a time that is a bound exactly comes back a little beside it.
TOLERANCE = 1e-6


def published_sigmas(num_steps: int, timeshift: float, denoise: float = 1.0) -> Tensor:
    """``1 - t`` on the published time grid, float32; with ``denoise`` below 1 the last ``num_steps`` of a longer grid.

    ``(num_steps + 1,)``; empty for ``denoise`` 0, as core's schedulers give.
    """
    if denoise <= 0:
        return torch.empty(0)
    total = num_steps if denoise > 0.9999 else int(num_steps / denoise)
    sigmas = 1 - time_grid(total, timeshift)
    return sigmas.float()[-(num_steps + 1) :]


def model_shift(percent_to_sigma: Callable[[float], float]) -> float:
    """The timeshift of a flow model's sampling, shift nodes included, from sigma half way: ``shift / (1 + shift)``."""
    half = float(percent_to_sigma(0.5))
    return half / (1 - half)


@torch.no_grad()
def sample_adams(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    order: int = 2,
) -> Tensor:
    """Adams-Bashforth on any sigmas, one model call a step, in the signature of core's sampler functions.

    The weights are the core's, for the actual times, the last step's too. ``callback`` is told each step's ``i``,
    ``sigma``, ``x`` and ``denoised``.
    """
    coefficients = adams_coefficients((1 - sigmas.cpu().double()).tolist(), order)
    ones = x.new_ones(x.shape[0])
    slopes: deque[Tensor] = deque(maxlen=order)
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **(extra_args or {}))
        slopes.append((x - denoised) / sigmas[i])
        if callback is not None:
            callback({'i': i, 'sigma': sigmas[i], 'sigma_hat': sigmas[i], 'x': x, 'denoised': denoised})
        mean = sum(weight * slope for weight, slope in zip(coefficients[i], slopes, strict=True))
        x = x + (sigmas[i + 1] - sigmas[i]) * mean
    return x


def interval_wrapper(start: float, end: float) -> Callable[..., Tensor]:
    """A wrapper of a guider's ``predict_noise`` that turns guidance off except where ``start < t < end``, strictly.

    With a scale of 1, core leaves the unconditional half out.
    """

    def predict_noise(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        t = 1 - float(timestep.flatten()[0])
        if start + TOLERANCE < t < end - TOLERANCE or not hasattr(guider, 'cfg'):
            return executor(x, timestep, *args, **kwargs)
        cfg, guider.cfg = guider.cfg, 1.0
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = cfg

    return predict_noise

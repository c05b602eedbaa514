"""The Adams solver and the guidance interval in ComfyUI's terms. Needs nothing of ComfyUI: it hands everything in."""

from __future__ import annotations

import inspect
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pixnerd_plugin.functional.time import shift_time
from pixnerd_plugin.sampling.adams import adams_coefficients

from .guards import check_shift, check_sigmas

# ComfyUI's sigmas are float32, so a time that is a bound exactly comes back a little beside it.
TOLERANCE = 1e-6

INTERVAL = 'pixnerd_guidance_interval'
"""Key of the wrapper that :func:`interval_wrapper` gives."""

PRE_CFG = 'sampler_pre_cfg_function'


def published_sigmas(num_steps: int, timeshift: float, denoise: float = 1.0) -> Tensor:
    """``1 - t`` on the published time grid, float32; with ``denoise`` below 1 the last ``num_steps`` of a longer grid.

    ``(num_steps + 1,)``; empty for ``denoise`` 0, as core's schedulers give.
    """
    if denoise <= 0:
        return torch.empty(0)
    total = num_steps if denoise > 0.9999 else int(num_steps / denoise)
    # Only the steps that are taken: the whole grid of a tiny denoise would fill the memory.
    index = torch.arange(total - num_steps, total + 1, dtype=torch.float64, device='cpu')
    return (1 - shift_time(index / total, timeshift)).float()


def model_shift(percent_to_sigma: Callable[[float], float]) -> float:
    """The timeshift of a flow model's sampling, shift nodes included, from sigma half way: ``shift / (1 + shift)``."""
    half = float(percent_to_sigma(0.5))
    return check_shift(half / (1 - half) if half != 1 else math.inf)


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

    The weights are the library's, for the actual times, the last step's too; a step of no length does nothing.
    ``callback`` is told each step's ``i``, ``sigma``, ``x`` and ``denoised``.
    """
    # On the CPU first: Apple's and Intel's GPUs have no float64.
    levels = sigmas.cpu().double().tolist()
    check_sigmas(levels)
    moves = [i for i in range(len(levels) - 1) if levels[i + 1] < levels[i]]
    times = [1 - levels[i] for i in moves] + [1 - levels[moves[-1] + 1]] if moves else []
    coefficients = adams_coefficients(times, order)
    ones = x.new_ones(x.shape[0])
    slopes: deque[Tensor] = deque(maxlen=order)
    for step, i in enumerate(tqdm(moves, disable=disable)):
        denoised = model(x, sigmas[i] * ones, **(extra_args or {}))
        slopes.append((x - denoised) / sigmas[i])
        if callback is not None:
            callback({'i': i, 'sigma': sigmas[i], 'sigma_hat': sigmas[i], 'x': x, 'denoised': denoised})
        mean = sum(weight * slope for weight, slope in zip(coefficients[step], slopes, strict=True))
        x = x + (sigmas[i + 1] - sigmas[i]) * mean
    return x


def _has_one_scale(guider: Any) -> bool:
    """Whether a guider guides by its ``cfg``; core's with two scales inherits one that it never looks at."""
    set_cfg = getattr(guider, 'set_cfg', None)
    return hasattr(guider, 'cfg') and (set_cfg is None or 'cfg' in inspect.signature(set_cfg).parameters)


def interval_wrapper(start: float, end: float) -> Callable[..., Tensor]:
    """A wrapper of a guider's ``predict_noise`` that turns guidance off except where ``start < t < end``, strictly.

    With a scale of 1, core leaves the unconditional half out. A guider without one scale is left alone, and the log
    says so once.
    """
    warned = False

    def predict_noise(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal warned
        guider = executor.class_obj
        if not _has_one_scale(guider):
            if not warned:
                logging.warning(
                    'PixNerd: the guidance interval does not act on %s, which has more than one scale.',
                    type(guider).__name__,
                )
            warned = True
            return executor(x, timestep, *args, **kwargs)
        t = 1 - float(timestep.flatten()[0])
        if start + TOLERANCE < t < end - TOLERANCE:
            return executor(x, timestep, *args, **kwargs)
        cfg, guider.cfg = guider.cfg, 1.0
        # Nodes that change both halves before they are combined, such as core's APG, would find zeros in one.
        args = tuple({**arg, PRE_CFG: []} if isinstance(arg, dict) and PRE_CFG in arg else arg for arg in args)
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = cfg

    return predict_noise

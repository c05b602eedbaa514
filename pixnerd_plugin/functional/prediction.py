"""What a network's output stands for: the velocity, or the image (JiT, arXiv 2511.13720), which implies a velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PREDICTIONS = ('velocity', 'image')

MIN_TIME_LEFT = 0.05
"""The least ``1 - t`` that an image is divided by, as in JiT: near t = 1 an error would be blown up without end."""


def to_velocity(output: Tensor, x_t: Tensor, t: Tensor | float, prediction: str) -> Tensor:
    """The velocity that an output means: itself, or ``(output - x_t) / max(1 - t, 0.05)`` if it is the image.

    Args:
        output, x_t: the network's output and the noisy pixels, ``(B, C, H, W)``.
        t: times ``(B,)``, or one number.
        prediction: ``'velocity'`` or ``'image'``.
    """
    if prediction == 'velocity':
        return output
    precise = torch.promote_types(output.dtype, torch.float32)
    return ((output.to(precise) - x_t.to(precise)) / _time_left(t)).to(output.dtype)


def true_velocity(image: Tensor, noise: Tensor, t: Tensor, prediction: str) -> Tensor:
    """The velocity to train towards: ``image - noise``, with the clamp of :func:`to_velocity` where the image is told.

    So a network that gives the image exactly has a loss of 0 at every time.
    """
    velocity = image - noise
    if prediction == 'velocity':
        return velocity
    return velocity * ((1 - t.view(-1, 1, 1, 1)) / _time_left(t))


def time_of(net: Any, t: Tensor) -> dict[str, Tensor]:
    """The arguments of ``net.decode`` beyond those of every network: the time, for one that predicts the image."""
    return {} if getattr(net, 'prediction', 'velocity') == 'velocity' else dict(t=t)


def _time_left(t: Tensor | float) -> Tensor | float:
    if isinstance(t, Tensor):
        return (1 - t).clamp(min=MIN_TIME_LEFT).view(-1, 1, 1, 1)
    return max(1 - t, MIN_TIME_LEFT)

"""Additional terms of a training loss, as registered parts: ``terms=[dict(type='FrequencyLoss', weight=1.0)]``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pixnerd_plugin.functional.dct import block_dct, rgb_to_ycbcr, visibility
from pixnerd_plugin.registry import MODELS, build


class LossTerm(nn.Module, ABC):
    """One term of a loss; subclasses define :attr:`name` and :meth:`forward`.

    Args:
        weight: factor of the term's mean; the loss reports the product as ``loss_NAME``.
    """

    name: ClassVar[str]
    needs_base_pixels: ClassVar[bool] = False
    """Whether the pixels must be those of a picture, evenly spaced, and not drawn from a finer one."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, velocity: Tensor, target: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the unweighted term of each picture, ``(B,)``.

        Args:
            velocity, target: the network's and the true velocity ``v``, ``(B, C, H, W)`` float32; each implies the
                image ``x_t + (1 - t) v``.
            x_t: noisy pixels ``(B, C, H, W)``.
            t: times ``(B,)``.
        """


@MODELS.register_module()
class FrequencyLoss(LossTerm):
    """``mean(Q (DCT(YCbCr(v_net)) - DCT(YCbCr(v)))^2)``: errors weighted by their visibility (DeCo, as released).

    Args:
        weight: weight of the term; 1 as published.
        quality: JPEG quality whose quantisation tables give ``Q``; 85 as published.

    Raises:
        ValueError: if ``quality`` is not from 1 to 100.
    """

    name = 'frequency'
    visibility: Tensor

    def __init__(self, weight: float = 1.0, quality: int = 85):
        super().__init__(weight)
        self.register_buffer('visibility', visibility(quality), persistent=False)

    def forward(self, velocity: Tensor, target: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        # Colours and DCT are linear, so one transform of the difference is enough.
        frequencies = block_dct(rgb_to_ycbcr(velocity - target))
        return (self.visibility[:, None] * frequencies.square()).mean((1, 2, 3, 4))


@MODELS.register_module()
class PerceptualLoss(LossTerm):
    """``mean(1 - cos(f(x_net), f(x)))`` of the images that the velocities imply, where ``t > t_min``.

    ``f`` are the tokens of a frozen network, which the gradients pass through. Nearer to the noise an image is a mean
    of many, whose features say little. Not with ``max_density`` above 1, whose pixels are drawn from a finer picture.

    Args:
        extractor: maps images ``(B, 3, H, W)`` in [-1, 1] to ``(B, L, D)``, with gradients: a callable, or a registry
            dict such as ``dict(type='DINOv2Teacher', model=FOLDER)``. It stays out of checkpoints and the EMA.
        weight: weight of the term.
        t_min: time from which on it counts.

    Raises:
        ValueError: if ``t_min`` is not from 0 to 1.
    """

    name = 'perceptual'
    needs_base_pixels = True

    def __init__(self, extractor: Callable[[Tensor], Tensor] | dict[str, Any], weight: float = 1.0, t_min: float = 0.5):
        super().__init__(weight)
        if not 0 <= t_min < 1:
            raise ValueError(f'PerceptualLoss: t_min={t_min} must be from 0 to 1, and below 1')
        self.t_min = t_min
        # In a tuple, so that nn.Module does not register one that is a module.
        self._extractor = (build(MODELS, extractor),)

    def forward(self, velocity: Tensor, target: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        left = (1 - t).view(-1, 1, 1, 1)
        drawn, true = (self._extractor[0](x_t + left * v) for v in (velocity, target.detach()))
        distance = (1 - F.cosine_similarity(drawn.float(), true.detach().float(), dim=-1)).flatten(1).mean(1)
        # Of all pictures, and not of the chosen alone: a GPU would wait to know how many they are.
        return distance * (t > self.t_min)

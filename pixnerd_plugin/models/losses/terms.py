"""Further terms of a training loss, each a part of its own: ``terms=[dict(type='FrequencyLoss', weight=1.0)]``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from pixnerd_plugin.functional.dct import block_dct, rgb_to_ycbcr, visibility
from pixnerd_plugin.registry import MODELS


class LossTerm(nn.Module, ABC):
    """One term of a loss: subclasses give :attr:`name` and :meth:`forward`.

    Args:
        weight: what the term's mean is multiplied by; the loss reports the product as ``loss_NAME``.
    """

    name: ClassVar[str]

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, velocity: Tensor, target: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the term of each picture, ``(B,)``, not weighted.

        Args:
            velocity, target: the network's and the true velocity, ``(B, C, H, W)`` float32; the image that each stands
                for is ``x_t + (1 - t) v``.
            x_t: noisy pixels ``(B, C, H, W)``.
            t: times ``(B,)``.
        """


@MODELS.register_module()
class FrequencyLoss(LossTerm):
    """``mean(Q (DCT(YCbCr(v_net)) - DCT(YCbCr(v)))^2)``: errors weighted by how much they show (DeCo, as released).

    Args:
        weight: of the term; 1 as published.
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
        # All of it is linear, so the difference is transformed once.
        frequencies = block_dct(rgb_to_ycbcr(velocity - target))
        return (self.visibility[:, None] * frequencies.square()).mean((1, 2, 3, 4))

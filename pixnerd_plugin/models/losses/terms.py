"""Additional terms of a training loss, as registered parts: ``terms=[dict(type='FrequencyLoss', weight=1.0)]``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from pixnerd_plugin.functional.dct import block_dct, rgb_to_ycbcr, visibility
from pixnerd_plugin.registry import MODELS


class LossTerm(nn.Module, ABC):
    """One term of a loss; subclasses define :attr:`name` and :meth:`forward`.

    Args:
        weight: factor of the term's mean; the loss reports the product as ``loss_NAME``.
    """

    name: ClassVar[str]

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

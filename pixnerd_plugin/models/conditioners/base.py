"""The interface of conditioners: user input or a training batch to ``cond``, and the null condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Conditioner(ABC):
    """Turns labels or prompts into the ``cond`` of a backbone; holds nothing that is trained.

    It is not an ``nn.Module``, so it stays out of checkpoints, DDP and the EMA.
    """

    device = torch.device('cpu')

    def to(self, device: torch.device | str) -> Conditioner:
        """Set the device of the results, and of the encoder if there is one; return ``self``."""
        self.device = torch.device(device)
        return self

    @abstractmethod
    def __call__(self, inputs: Sequence[Any]) -> Tensor:
        """Convert user input, one entry per picture, to ``cond`` of batch size ``len(inputs)``."""

    @abstractmethod
    def null(self, batch_size: int) -> Tensor:
        """The null condition, ``batch_size`` times."""

    @abstractmethod
    def from_batch(self, data_samples: Mapping[str, Any]) -> Tensor:
        """Convert the ``data_samples`` of a collated training batch to ``cond``."""

"""A trained network that is used and not trained: what a loss distils."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.models.frozen import FrozenModel, resolve_dtype
from pixnerd_plugin.registry import MODELS

from .load import load_backbone, read_checkpoint


@MODELS.register_module()
class FrozenBackbone:
    """The network of a file, for ``MeanFlowLoss(velocity_teacher=...)``.

    The file is looked at when the object is made; the weights are read at the first call. It is not an ``nn.Module``,
    so it stays out of checkpoints, DDP and the EMA.

    Args:
        checkpoint: whatever :func:`~.load.load_backbone` reads.
        weights: ``'ema'`` or ``'raw'``.
        dtype: of weights and computation, ``'float32'`` or ``'bfloat16'``; by default the file's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or no network, or has no such weights; one line.
    """

    def __init__(self, checkpoint: str | Path, weights: str = 'ema', dtype: str | None = None):
        self.prediction = read_checkpoint(checkpoint, weights).architecture.get('prediction', 'velocity')
        self._model = FrozenModel(partial(_load, checkpoint, weights, None if dtype is None else resolve_dtype(dtype)))

    @torch.no_grad()
    def encode(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As :meth:`PixNerdDiT.encode`, on the device of ``x``."""
        net = self._model.to(x.device).module
        return net.encode(self._cast(x), *args, **kwargs)

    @torch.no_grad()
    def decode(self, s: Tensor, pixels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As :meth:`PixNerdDiT.decode`."""
        net = self._model.to(s.device).module
        return net.decode(s, self._cast(pixels), *args, **kwargs)

    def grid_of(self, x: Tensor, token_grid: tuple[int, int] | None = None) -> tuple[int, int]:
        """As :meth:`PixNerdDiT.grid_of`."""
        return self._model.module.grid_of(x, token_grid)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(next(self._model.module.parameters()).dtype)


def _load(checkpoint: str | Path, weights: str, dtype: torch.dtype | None) -> nn.Module:
    return load_backbone(checkpoint, weights).to(dtype)

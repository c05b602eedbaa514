"""Embeddings of time and text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixnerd_plugin.functional.time import NUM_FREQUENCIES, time_features


class TimeEmbedding(nn.Module):
    """Time features through Linear, SiLU, Linear: ``t (B,)`` to ``(B, D)``."""

    def __init__(self, dim: int, operations: Any, **factory: Any):
        super().__init__()
        self.fc1 = operations.Linear(2 * NUM_FREQUENCIES, dim, **factory)
        self.fc2 = operations.Linear(dim, dim, **factory)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.fc2(F.silu(self.fc1(time_features(t).to(dtype))))


class TextEmbedding(nn.Module):
    """``RMSNorm(Linear(text))`` plus learned positions: ``(B, N, text_dim)`` to ``(B, N, D)``, ``N <= length``."""

    def __init__(self, text_dim: int, dim: int, length: int, operations: Any, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(text_dim, dim, **factory)
        self.norm = operations.RMSNorm(dim, eps=1e-6, **factory)
        self.positions = nn.Parameter(torch.empty(1, length, dim, **factory))

    def forward(self, text: Tensor) -> Tensor:
        y = self.norm(self.proj(text))
        return y + self.positions[:, : text.shape[1]].to(y)

"""Plain values, which ``torch.load(weights_only=True)`` accepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


def plain(value: Any) -> Any:
    """Convert numpy values, paths and dict subclasses to what ``torch.load(weights_only=True)`` accepts.

    Raises:
        TypeError: if an object has no plain form.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, complex, str, bytes):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f'a {type(value).__module__}.{type(value).__qualname__} cannot be stored in a checkpoint')

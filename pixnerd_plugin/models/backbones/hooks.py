"""Where a host of the network, such as ComfyUI, takes part in one call of its transformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Hooks:
    """Takes no part. A host overrides what it wants to act on; an object serves one call."""

    def positions(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The positions of the tokens, each ``(rows * columns,)``, in place of those of the network's rule."""
        return x, y

    def run(self, block: Any, index: int | None, h: Tensor, modulation: Tensor, *args: Any) -> Tensor:
        """Call a block on ``h (B, L, D)``; ``index`` counts them from 0, and is None for those that refine the text."""
        return block(h, modulation, *args)

"""Points at which a host, such as ComfyUI, can act on one call of the transformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Hooks:
    """Hooks that do nothing. A host overrides those it needs, and passes a new object to each call."""

    def positions(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return token positions, each ``(rows * columns,)``, to replace those of the network's rule, or these."""
        return x, y

    def run(self, block: Any, index: int | None, h: Tensor, modulation: Tensor, *args: Any) -> Tensor:
        """Run a block on ``h (B, L, D)``; ``index`` counts from 0, and is None for blocks that refine the text."""
        return block(h, modulation, *args)

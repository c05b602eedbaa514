"""The linear head that the paper compares the field with (Baseline-L/16)."""

from __future__ import annotations

from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn

from pixnerd_plugin.formats.parts import describe_part
from pixnerd_plugin.formats.schema import Rule
from pixnerd_plugin.models.layers import operations as own_operations
from pixnerd_plugin.registry import MODELS

from .base_pixels import require_base_pixels


@MODELS.register_module()
class LinearHead(nn.Module):
    """RMSNorm and one linear layer from a patch's vector to the velocities of its ``P x P`` pixels.

    It sees neither coordinates nor noisy values, and gives no other number of pixels. Arguments as for
    :class:`~.neural_field.NeuralFieldHead`.
    """

    role = 'head'
    stored: ClassVar[dict[str, Rule]] = {}

    def __init__(
        self, dim: int, patch_size: int, in_channels: int = 3, operations: Any = own_operations, **factory: Any
    ):
        super().__init__()
        self.patch_size = patch_size
        self.norm = operations.RMSNorm(dim, eps=1e-6, **factory)
        self.proj = operations.Linear(dim, in_channels * patch_size**2, **factory)

    def init_weights(self) -> None:
        """Zero the layer, so that training starts at velocity 0."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def architecture(self) -> dict[str, Any]:
        """The arguments that rebuild this head inside a backbone, as a registry dict."""
        return describe_part(self)

    def forward(
        self,
        s: Tensor,
        pixels: Tensor,
        positions: tuple[Tensor, Tensor] | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Map ``s (B, L, D)`` to velocities shaped like ``pixels (B, L, P, P, C)``; ``chunk`` has no effect.

        Raises:
            ValueError: if the patches are not ``P x P`` or ``positions`` are given, which only a field can handle.
        """
        height, width = require_base_pixels(self, pixels, positions)
        return rearrange(self.proj(self.norm(s)), 'b l (h w c) -> b l h w c', h=height, w=width)

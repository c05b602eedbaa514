"""When a neural field is evaluated by its Triton kernel, and how.

The kernel is used once it has agreed with the head's own operations, forward and backward, on this device, in this
dtype and for fields of this shape; if it does not, or cannot be compiled, one warning says so and the operations stay.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.functional.norms import is_transformed
from pixnerd_plugin.models.layers.operations import RMSNorm

DEVICES = ('cuda',)

LARGEST_TILE = 2**13
"""Values of one weight of a patch: more than those of width 64 do not fit a processor's registers."""

AGREEMENT = 0.05
"""Largest relative difference of a trial; in bfloat16 it is 0.02."""


def takes(head: Any, vectors: Tensor) -> bool:
    """Whether the kernel evaluates ``head`` for these patch vectors.

    Not while something traces or differentiates forward, not with layers of others (a host's, adapters), and in
    float32 only where torch may use TF32: the kernel is no gain there.
    """
    device = vectors.device
    if device.type not in DEVICES or is_transformed():
        return False
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else vectors.dtype
    if dtype not in (torch.bfloat16, torch.float16) and not (
        dtype == torch.float32 and torch.get_float32_matmul_precision() != 'highest'
    ):
        return False
    kind: Any = type(head)
    return _fits(head) and _has_triton() and _agrees(kind, device, dtype, *_shape_of(head))


def evaluate(head: Any, generated: Tensor, pixels: Tensor, table: Tensor) -> Tensor:
    """Velocity ``(N, M, C)`` of ``pixels`` by the kernel; ``table`` is ``(M, D_x)``."""
    from pixnerd_plugin.functional import field_kernel

    field = field_kernel.Field(
        head.pixel_embed.weight,
        torch.stack([norm.weight for norm in head.norms]),
        getattr(head.norm, 'weight', None),
        head.proj.weight,
        head.proj.bias,
    )
    return field_kernel.evaluate(pixels, table, generated, field, head.normalize != 'fc1', head.norms[0].eps)


def _fits(head: Any) -> bool:
    layers_are_own = type(head.pixel_embed) is type(head.proj) is nn.Linear and all(
        type(norm) is RMSNorm for norm in head.norms
    )
    is_small = _power_of_two(head.width) * _power_of_two(head.mlp_ratio * head.width) <= LARGEST_TILE
    return layers_are_own and is_small and len(head.norms) > 0


def _power_of_two(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())


def _shape_of(head: Any) -> tuple[Any, ...]:
    return head.pixel_embed.in_features, head.width, head.depth, head.mlp_ratio, head.normalize


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec('triton') is not None


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def _agrees(kind: Any, device: torch.device, dtype: torch.dtype, *shape: Any) -> bool:
    """Compare the kernel with a head's operations on a few patches of noise."""
    channels, width, depth, mlp_ratio, normalize = shape
    with torch.random.fork_rng(devices=[]), torch.autocast(device.type, enabled=False):
        torch.manual_seed(0)
        head = kind(16, 8, channels, width, depth, mlp_ratio, normalize=normalize, kernel=False).to(device, dtype)
        vectors, pixels, gradient = (
            torch.randn(size).to(device, dtype) for size in ((2, 16), (2, 6, 8, channels), (2, 48, channels))
        )
        table = head.coord_embed(head._features((6, 8), None, device).to(dtype))
        generated = head.generator(vectors)
        leaves = [generated, *head.pixel_embed.parameters(), *head.norms.parameters(), *head.proj.parameters()]
        expected = head._evaluate(head._weights(generated), pixels, table).flatten(1, 2)
        why = ''
        try:
            found = evaluate(head, generated, pixels.flatten(1, 2), table.flatten(0, 1))
            pairs = [(found.detach(), expected.detach())]
            of = [torch.autograd.grad(v, leaves, gradient, retain_graph=True) for v in (found, expected)]
            pairs += zip(*of, strict=True)
            worst = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
            if not worst < AGREEMENT:
                why = f'it differs from them by {worst:.1%}'
        except Exception as error:  # a compiler, a driver or a linker that is not as it should be
            why = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
    if why:
        logging.getLogger(__name__).warning(
            "the neural field stays with torch's operations, because its Triton kernel failed its trial on %s: %s. "
            'Results are not affected.',
            device,
            why,
        )
    return not why

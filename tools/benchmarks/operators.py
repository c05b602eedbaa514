"""How many kernels a GPU is asked for in one forward, and what the field moves, counted on tensors without memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixnerd_plugin.models.heads import fused
from pixnerd_plugin.models.layers import operations
from pixnerd_plugin.models.layers.attention import scaled_dot_product_attention
from pixnerd_plugin.registry import MODELS, build

from .measure import print_header, print_row
from .networks import NUM_CLASSES, SHAPES, Published, Shape, shape_of

__all__ = ['SHAPES', 'count_ours', 'count_published', 'run']

# They name memory, and launch nothing.
NO_KERNEL = ('aten._unsafe_view', 'aten.empty', 'aten.empty_like', 'aten.new_empty')


def run(args: Any) -> None:
    """Print the operators of one forward, views left out, RMSNorm and attention as the one kernel each is on a GPU."""
    shape, dtype = shape_of(args), getattr(torch, args.dtype)
    rows = {
        'ours, a step of sampling': count_ours(shape, args.size, args.batch[0], dtype, ahead=True),
        'ours, a step of sampling, field by its kernel': count_ours(
            shape, args.size, args.batch[0], dtype, ahead=True, kernel=True
        ),
        'ours, one forward': count_ours(shape, args.size, args.batch[0], dtype),
    }
    if args.reference:
        for autocast in (False, True):
            name = 'published, autocast' if autocast else 'published, float32'
            rows[name] = count_published(args.reference, shape, args.size, args.batch[0], autocast)
    print(f'{shape.name}, {shape.depth} blocks, {args.size}x{args.size}, ours in {args.dtype}')
    print_header('', 'operators', 'most frequent')
    for name, counts in rows.items():
        most = ', '.join(f'{operator.removeprefix("aten.")} {times}' for operator, times in counts.most_common(6))
        print_row(name, sum(counts.values()), most)
    if not shape.field_depth:
        return
    print_header('the field alone', 'operators', 'MB read and written')
    for trained in (False, True):
        for kernel in (False, True):
            operators, moved = count_field(shape, args.size, args.batch[0], dtype, trained, kernel)
            what = 'forward and backward' if trained else 'forward'
            print_row(f'{what}, {"by its kernel" if kernel else "by operations"}', operators, f'{moved / 1e6:.0f}')


class OperatorCount(TorchDispatchMode):
    """Counts operators that are not views by name, in ``counts``, and what they read and write in ``moved`` bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.moved = 0
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit('.', 1)[0]
        result = func(*args, **(kwargs or {}))
        if not (self._paused or func.is_view or name in NO_KERNEL):
            self.counts[name] += 1
            self.moved += size_of(args, kwargs, result)
        return result

    @contextmanager
    def one(self, name: str, moved: int = 0) -> Iterator[None]:
        """All that runs inside counts as one operator."""
        self.counts[name] += 1
        self.moved += moved
        self._paused = True
        yield
        self._paused = False


def size_of(*parts: Any) -> int:
    """Bytes of all tensors in these."""
    return sum(part.nbytes for part in tree_leaves(parts) if isinstance(part, Tensor))


def layers_of(counter: OperatorCount) -> SimpleNamespace:
    """Our layers, whose RMSNorm counts as one operator forward and one backward."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
            with counter.one('rms_norm', 2 * h.nbytes):
                ctx.save_for_backward(h, weight)
                return torch.empty_like(h)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            with counter.one('rms_norm_backward', 3 * gradient.nbytes):
                h, weight = ctx.saved_tensors
                return torch.empty_like(h), torch.empty_like(weight)

    class RMSNorm(operations.RMSNorm):
        def forward(self, h: Tensor) -> Tensor:
            return Norm.apply(h, self.weight)

    return SimpleNamespace(**{name: getattr(operations, name) for name in operations.__all__} | {'RMSNorm': RMSNorm})


def field_as_one(counter: OperatorCount) -> Any:
    """A context in which the field's kernel is used, and counts as one operator beside what is made for it."""

    def evaluate(head: Any, generated: Tensor, pixels: Tensor, table: Tensor) -> Tensor:
        torch.stack([norm.weight for norm in head.norms])
        # Patches read the table again, out of the cache.
        with counter.one('field', size_of(generated, pixels, table) + pixels.nbytes):
            return torch.empty_like(pixels)

    return patch.multiple(fused, takes=lambda head, vectors: True, evaluate=evaluate)


def count_ours(
    shape: Shape, size: int, batch: int, dtype: torch.dtype, ahead: bool = False, kernel: bool = False
) -> Counter[str]:
    """Operators of the second forward of our network.

    With ``ahead``, what depends on the time is computed before; with ``kernel``, the field's kernel is used.
    """
    counter = OperatorCount()

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with counter.one('attention'):
            # Fused kernels write (B, tokens, heads, width).
            return scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)

    with torch.device('meta'):
        parts = dict(operations=layers_of(counter), attention=attention)
        net = MODELS.build(dict(shape.config(), **parts)).to(dtype).eval()
        x, t = torch.randn(batch, 3, size, size, dtype=dtype), torch.rand(batch)
        cond, _ = shape.conditions(batch, 'meta', dtype)
    with torch.no_grad(), field_as_one(counter) if kernel else nullcontext():
        known = dict(conditioning=net.condition(t, cond, dtype)) if ahead else {}
        return _second(counter, lambda: net(x, t, cond, **known))


def count_field(
    shape: Shape, size: int, batch: int, dtype: torch.dtype, trained: bool, kernel: bool
) -> tuple[int, int]:
    """Operators, and bytes read and written, of the field alone: forward or, if ``trained``, with all gradients.

    Its generator and the coordinates' part of its input layer, which both ways share, are left out.
    """
    counter, patches, side = OperatorCount(), batch * (size // 16) ** 2, 16
    with torch.device('meta'):
        head = build(
            MODELS, shape.config()['head'], dim=16, patch_size=side, in_channels=3, operations=layers_of(counter)
        )
        head.to(dtype).requires_grad_(trained)
        generated = torch.empty(patches, head.generator.out_features, dtype=dtype, requires_grad=trained)
        pixels = torch.empty(patches, side, side, 3, dtype=dtype)
        table = torch.empty(side, side, head.width, dtype=dtype, requires_grad=trained)
    if kernel:
        flat = pixels.flatten(1, 2)
        with field_as_one(counter), counter, torch.no_grad():
            fused.evaluate(head, generated, flat, table)
        if trained:
            h = patches * side**2 * head.width * dtype.itemsize
            # Kept: what enters each block and the output; read again, the last twice.
            forth, back = (head.depth + 1) * h, (head.depth + 2) * h
            # The gradient of h is written, then read and written by each block, and read by three sums and products.
            gradients = (1 + 2 * head.depth + 3) * h
            # The backward kernel reads the weights twice and writes their gradients.
            counter.moved += forth + back + gradients + 3 * generated.nbytes + pixels.nbytes
            counter.counts['backward'] += 1
            counter.counts['sums and products of gradients'] += 4
        return sum(counter.counts.values()), counter.moved
    with counter, torch.set_grad_enabled(trained):
        v = head._evaluate(head._weights(generated), pixels, table)
        if trained:
            v.backward(torch.empty_like(v))
    return sum(counter.counts.values()), counter.moved


def count_published(checkout: str, shape: Shape, size: int, batch: int, autocast: bool) -> Counter[str]:
    """Operators of the second forward of the published network, as its code is written."""
    counter = OperatorCount()
    published = Published(checkout, shape)
    net: nn.Module = published.eval()
    cond = torch.randint(NUM_CLASSES, (batch,)) if not shape.text else shape.conditions(batch, 'cpu', torch.float32)[0]
    x, t = torch.randn(batch, 3, size, size), torch.rand(batch)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        return _second(counter, lambda: net(x, t, cond))


def _second(counter: OperatorCount, call: Callable[[], Any]) -> Counter[str]:
    """Count the second of two calls: tables of the first are kept."""
    call()
    counter.counts.clear()
    with counter:
        call()
    return counter.counts

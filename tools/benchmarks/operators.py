"""How many kernels a GPU is asked for in one forward, counted on tensors without memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pixnerd_plugin.models.layers import operations
from pixnerd_plugin.models.layers.attention import scaled_dot_product_attention
from pixnerd_plugin.registry import MODELS

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


class OperatorCount(TorchDispatchMode):
    """Counts operators that are not views by name, in ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit('.', 1)[0]
        if not (self._paused or func.is_view or name in NO_KERNEL):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """All that runs inside counts as one operator."""
        self.counts[name] += 1
        self._paused = True
        yield
        self._paused = False


def count_ours(shape: Shape, size: int, batch: int, dtype: torch.dtype, ahead: bool = False) -> Counter[str]:
    """Operators of the second forward of our network; with ``ahead``, what depends on the time is computed before."""
    counter = OperatorCount()

    class RMSNorm(operations.RMSNorm):
        def forward(self, h: Tensor) -> Tensor:
            with counter.one('rms_norm'):
                return super().forward(h)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with counter.one('attention'):
            # Fused kernels write (B, tokens, heads, width).
            return scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)

    layers = SimpleNamespace(**{name: getattr(operations, name) for name in operations.__all__} | {'RMSNorm': RMSNorm})
    with torch.device('meta'):
        net = MODELS.build(dict(shape.config(), operations=layers, attention=attention)).to(dtype).eval()
        x, t = torch.randn(batch, 3, size, size, dtype=dtype), torch.rand(batch)
        cond, _ = shape.conditions(batch, 'meta', dtype)
    with torch.no_grad():
        known = dict(conditioning=net.condition(t, cond, dtype)) if ahead else {}
        return _second(counter, lambda: net(x, t, cond, **known))


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

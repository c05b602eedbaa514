"""Networks compiled for sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn


def compiled(net: nn.Module) -> Callable[..., Any]:
    """The network's forward, compiled; on a GPU its kernels are launched as one CUDA graph.

    The network stays as it is. It is compiled at the first call, once more at another batch size and once at another
    picture size, which from then on may be any; a batch of one is a case of its own. With a ``field_chunk``, or above
    2**22 pixels, the field's loop is unrolled, and each number of its rounds is compiled anew.
    """
    on_gpu = next(net.parameters()).device.type == 'cuda'
    kind: Any = type(net)  # hashable, which mypy doubts of a type of modules
    forward = _compiled_forward(kind, 'reduce-overhead' if on_gpu else None)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not on_gpu:
            return forward(net, *args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        out = forward(net, *args, **kwargs)
        # The next call of the graph writes to the same memory.
        return tuple(part.clone() for part in out) if isinstance(out, tuple) else out.clone()

    return call


@cache
def _compiled_forward(kind: Any, mode: str | None) -> Callable[..., Any]:
    # Of the class, so that nothing holds on to a network.
    return torch.compile(kind.forward, mode=mode)

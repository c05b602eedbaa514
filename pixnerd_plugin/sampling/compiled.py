"""Networks compiled for sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from pixnerd_plugin.models.layers.packing import unpack


class CompiledNetwork:
    """A network whose ``forward``, ``encode`` and ``decode`` are compiled; on a GPU each runs as one CUDA graph.

    The network stays as it is. Each is compiled at the first call, once more at another batch size and once at another
    picture size, which from then on may be any; a batch of one is a case of its own. With a ``field_chunk``, or above
    2**22 pixels, the field's loop is unrolled, and each number of its rounds is compiled anew.
    """

    def __init__(self, net: nn.Module):
        # A compiler lays weights out by itself.
        unpack(net)
        self.net: Any = net
        self.on_gpu = next(net.parameters()).device.type == 'cuda'

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run('forward', *args, **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._run('encode', *args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return self._run('decode', *args, **kwargs)

    @property
    def prediction(self) -> str:
        return getattr(self.net, 'prediction', 'velocity')

    def grid_of(self, *args: Any) -> tuple[int, int]:
        return self.net.grid_of(*args)

    def _run(self, method: str, *args: Any, conditioning: Any = None, **kwargs: Any) -> Any:
        if conditioning is not None:
            # A compiler asks where in memory a view begins, and compiles anew when that changes.
            kwargs['conditioning'] = conditioning.clone()
        # Of the class, so that nothing holds on to a network.
        function = _compiled(getattr(type(self.net), method), 'reduce-overhead' if self.on_gpu else None)
        if not self.on_gpu:
            return function(self.net, *args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        out = function(self.net, *args, **kwargs)
        # The next call of the graph writes to the same memory.
        return tuple(_cloned(part) for part in out) if isinstance(out, tuple) else out.clone()


def _cloned(part: Any) -> Any:
    return None if part is None else part.clone()


@cache
def _compiled(function: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    return torch.compile(function, mode=mode)

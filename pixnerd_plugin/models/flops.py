"""Floating-point operations: those of a forward pass, and the peak rate of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pixnerd_plugin.functional.prediction import time_of

# Dense bf16 with float32 accumulation, in TFLOP/s, from the makers' data sheets. The first matching name counts.
PEAK_TFLOPS = {
    'H200': 989,
    'H100 PCIe': 756,
    'H100 NVL': 835,
    'H100': 989,
    'A100': 312,
    'A800': 312,
    'L40S': 362,
    'L40': 181,
    'L4': 121,
    'A40': 150,
    'A10G': 70,
    'A10': 125,
    'RTX A6000': 155,
    'RTX 4090': 165,
    'RTX 3090': 71,
}


def peak_flops(name: str | None = None) -> float:
    """Peak FLOP/s of a GPU (by default the current one) in bf16 without sparsity; 0 if unknown."""
    if name is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if known in name), 0.0)


def forward_flops(net: Any, size: int | tuple[int, int]) -> int:
    """FLOPs of one forward pass on one picture; a multiplication and an addition count as two.

    They are counted on the meta device, from shapes alone. (On a CPU, torch's counter would leave out attention.)

    Args:
        net: the backbone.
        size: (height, width) in pixels, or one number for both.
    """
    with torch.no_grad():
        return _count(net, size, _velocity)


def training_flops(net: Any, size: int | tuple[int, int]) -> int:
    """FLOPs of one forward and backward pass on one picture; see :func:`forward_flops`."""
    return _count(net, size, lambda *inputs: _velocity(*inputs).sum().backward())


def _count(net: Any, size: int | tuple[int, int], run: Callable[..., Any]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.empty(1, net.in_channels, height, width, device='meta')
    if net.text_dim is None:
        cond = torch.empty(1, dtype=torch.long, device='meta')
    else:
        cond = torch.empty(1, net.text_length, net.text_dim, device='meta')
    # In float32, whatever the network's dtype: the operations are the same.
    state = {f'net.{name}': torch.empty_like(t, device='meta', dtype=None) for name, t in net.state_dict().items()}
    state = {name: t.float().requires_grad_() if t.is_floating_point() else t for name, t in state.items()}
    with FlopCounterMode(display=False) as counter:
        functional_call(_Call(net, run), state, (x, torch.empty(1, device='meta'), cond))
    return counter.get_total_flops()


def _velocity(net: Any, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """The velocity of ``x`` without the network's ``compile()``, which would compile just to count one picture."""
    kind = type(net)
    s, _ = kind.encode(net, x, t, cond)
    return kind.decode(net, s, x, net.grid_of(x), **time_of(net, t))


class _Call(nn.Module):
    """``run(net, *inputs)`` as a module, which :func:`functional_call` wants."""

    def __init__(self, net: Any, run: Callable[..., Any]):
        super().__init__()
        self.net = net
        self.run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self.net, *inputs)

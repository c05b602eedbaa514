"""Weights in the order in which a CPU's matrix products read them, while a network only draws.

torch reorders a weight at every call of a product; done once, a product of these networks takes 0.5 to 0.9 of the time
on a CPU with AVX-512, or held to AVX2. The packed copy takes the plain one's place in memory. Whoever asks for the
weight, or trains, moves, copies or saves the layer, gets the plain one back, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Smaller weights are left as they are: calling a product costs more than computing it.
MIN_WEIGHTS = 2**16

# oneDNN lays a weight out for an expected number of rows; this layout is as fast for one row as for a thousand.
EXPECTED_ROWS = 256


def pack(net: nn.Module) -> int:
    """Pack the large linear layers of a network in evaluation mode on the CPU; return how many are packed now.

    Layers of other classes than ``nn.Linear`` (a host's own, adapters) and of other dtypes are left alone, bfloat16 too
    where oneDNN refuses it. Nothing happens where torch was built without oneDNN.

    Raises:
        ValueError: if the network is in training mode, because a packed weight cannot be trained.
    """
    if net.training:
        raise ValueError('pack() is for drawing, and the network is in training mode; call eval() first')
    layers = (
        [layer for layer in net.modules() if type(layer) is nn.Linear and _is_worth_it(layer)] if can_pack() else []
    )
    for layer in layers:
        PackedLinear.of(layer)
    return sum(isinstance(layer, PackedLinear) for layer in net.modules())


def unpack(net: nn.Module) -> None:
    """Give every layer its plain weight back."""
    for layer in list(net.modules()):
        if isinstance(layer, PackedLinear):
            layer.unpack()


def can_pack() -> bool:
    """Whether this build of torch packs weights."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def gains_by_packing(device: torch.device) -> bool:
    """Whether packing is the default on this device: on CPUs with AVX2 or AVX-512 (docs/performance.md)."""
    return device.type == 'cpu' and can_pack() and torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')


class PackedLinear(nn.Linear):
    """A linear layer while it is packed; :meth:`unpack` makes it an ``nn.Linear`` again.

    Its ``weight`` among ``parameters()`` is the same object as before, of the same shape, dtype and device, but holds
    nothing: all of it reads NaN until the layer is unpacked. Attribute access unpacks.
    """

    _packed: Tensor
    _plain: nn.Parameter

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def of(cls, layer: nn.Linear) -> None:
        """Pack a layer in place."""
        weight = layer.weight
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), EXPECTED_ROWS)
        layer.__dict__.update(_packed=packed, _plain=weight)
        weight.data = torch.full((), float('nan'), dtype=weight.dtype).expand(weight.shape)
        layer.__class__ = cls

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Make this an ``nn.Linear`` with its plain weight."""
        packed, plain = self.__dict__.pop('_packed'), self.__dict__.pop('_plain')
        plain.data = packed.to_dense()
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def forward(self, h: Tensor) -> Tensor:
        # functional_call, or whoever assigns another weight, means that one.
        if self._parameters['weight'] is self._plain:
            if _takes(h, self._packed):
                if not h.numel():
                    return h.new_empty(*h.shape[:-1], self.out_features)
                return torch.ops.mkldnn._linear_pointwise(h, self._packed, self._parameters['bias'], 'none', [], '')
            self.unpack()
        return nn.functional.linear(h, self._parameters['weight'], self._parameters['bias'])  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == 'weight':
            self.unpack()
        return nn.Module.__getattr__(self, name)

    def train(self, mode: bool = True) -> PackedLinear:
        if mode:
            self.unpack()
        return nn.Linear.train(self, mode)

    def _apply(self, *args: Any, **kwargs: Any) -> PackedLinear:
        self.unpack()
        return nn.Linear._apply(self, *args, **kwargs)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        nn.Linear._save_to_state_dict(self, *args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        nn.Linear._load_from_state_dict(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copying and pickling.
        self.unpack()
        return nn.Linear.__reduce_ex__(self, protocol)


def _is_worth_it(layer: nn.Linear) -> bool:
    weight = layer.weight
    # On an x86 CPU with AVX2 alone, oneDNN refuses bfloat16.
    onednn_takes_it = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return weight.device.type == 'cpu' and onednn_takes_it and weight.numel() >= MIN_WEIGHTS


def _takes(h: Tensor, packed: Tensor) -> bool:
    """Whether a packed product gives what the plain one would: without gradients, in the weight's own dtype."""
    return (
        h.dtype == packed.dtype
        and h.device.type == 'cpu'
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled('cpu')
    )

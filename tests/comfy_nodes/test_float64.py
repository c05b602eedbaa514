"""Apple's and Intel's GPUs have no float64; the meta device stands for one here."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pixnerd_plugin.models.backbones import PixNerdDiT
from pixnerd_plugin.sampling import AdamsFlowSampler, FieldTrajectory


class NoFloat64(TorchDispatchMode):
    """Raises when float64 appears on any device but the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and tensor.device.type != 'cpu':
                raise TypeError(f'float64 on {tensor.device} in {function}')
        return result


@pytest.mark.parametrize('size', [(16, 24), (32, 40), (21, 17)])
def test_a_field_decodes_without_it(size):
    net = PixNerdDiT(
        dim=16, depth=1, num_heads=2, num_classes=4, patch_size=4, head=dict(type='NeuralFieldHead', width=8)
    )
    tokens = [torch.zeros(1, 1, 24, 16) for _ in range(3)]
    noise = torch.zeros(1, 3, 16, 24, device='meta')
    field = FieldTrajectory(net.head.to('meta'), AdamsFlowSampler(3, guidance_scale=1.0), noise, (4, 6), tokens)
    with NoFloat64():
        assert field.decode(size, grain=0.2, alignment='centers').shape[2:] == size
    with pytest.raises(TypeError, match='float64 on meta'), NoFloat64():
        noise.double()

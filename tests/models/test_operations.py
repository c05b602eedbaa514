import pytest
import torch
from torch import nn

from pixnerd_plugin.models.layers.operations import RMSNorm
from tests.golden import relative_error


@pytest.mark.parametrize('gradients', [False, True])
def test_norm_is_torchs(gradients):
    norm, h = RMSNorm(48, eps=1e-6), torch.randn(2, 5, 48)
    nn.init.normal_(norm.weight)
    expected = nn.functional.rms_norm(h, (48,), norm.weight, 1e-6)
    with torch.set_grad_enabled(gradients):
        assert relative_error(norm(h).detach(), expected.detach()) < 1e-6
    assert list(norm.state_dict()) == ['weight']


def test_norm_keeps_the_dtype_of_its_input():
    assert RMSNorm(8)(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16

import pytest
import torch
from torch import nn

from pixnerd_plugin.functional.norms import rms_norm, unit_columns
from pixnerd_plugin.models.layers.operations import RMSNorm
from tests.golden import relative_error


def gradients(function, *inputs):
    """What ``function`` returns, and the gradients of its product with fixed numbers."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves)


def test_norm_is_torchs():
    torch.manual_seed(0)
    norm, h = RMSNorm(48, eps=1e-6), torch.randn(2, 5, 48)
    nn.init.normal_(norm.weight)

    def plain(h, weight):
        return nn.functional.rms_norm(h, (48,), weight, 1e-6)

    def ours(h, weight):
        return torch.func.functional_call(norm, {'weight': weight}, h)

    expected, found = gradients(plain, h, norm.weight.detach()), gradients(ours, h, norm.weight.detach())
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-6
    with torch.no_grad():
        assert relative_error(norm(h), expected[0]) < 1e-6
    assert list(norm.state_dict()) == ['weight']


@pytest.mark.parametrize('trained', [(True, False), (False, True)])
def test_gradient_of_a_norm_for_what_is_trained_only(trained):
    h, weight = torch.randn(3, 4).requires_grad_(trained[0]), torch.randn(4).requires_grad_(trained[1])
    rms_norm(h, weight, 1e-6).sum().backward()
    assert (h.grad is not None, weight.grad is not None) == trained


def test_unit_columns_are_those_of_normalize():
    torch.manual_seed(0)
    w = torch.randn(2, 5, 7)

    def plain(w):
        return nn.functional.normalize(w, dim=1)

    for a, b in zip(gradients(unit_columns, w), gradients(plain, w), strict=True):
        assert relative_error(a, b) < 1e-6
    with torch.no_grad():
        assert relative_error(unit_columns(w), plain(w)) < 1e-6


def test_a_column_of_zeros_stays_finite():
    w, *of_w = gradients(unit_columns, torch.zeros(1, 3, 2))
    assert w.abs().max() == 0
    assert all(gradient.isfinite().all() for gradient in of_w)


@pytest.mark.parametrize('function', [unit_columns, lambda w: rms_norm(w, torch.ones(3), 1e-6)])
def test_torch_func_differentiates_forwards_and_vectorises(function):
    torch.manual_seed(0)
    w, direction = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    value, change = torch.func.jvp(function, (w,), (direction,))
    assert relative_error(value, function(w)) < 1e-6
    torch.testing.assert_close(
        change, (function(w + 1e-2 * direction) - function(w - 1e-2 * direction)) / 2e-2, rtol=1e-2, atol=1e-3
    )
    every = torch.func.vmap(function)(torch.stack([w, direction]))
    assert relative_error(every, torch.stack([function(w), function(direction)])) < 1e-6


def test_a_second_derivative_is_refused_rather_than_wrong():
    w = torch.randn(2, 4, 3, requires_grad=True)
    (first,) = torch.autograd.grad(rms_norm(w, torch.ones(3), 1e-6).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()


def test_norm_keeps_the_dtype_of_its_input():
    assert RMSNorm(8)(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_norm_in_half_precision_is_as_close_to_the_exact_one_as_torchs(dtype):
    torch.manual_seed(0)
    h, weight = torch.randn(64, 48).to(dtype), torch.randn(48).to(dtype)
    exact = nn.functional.rms_norm(h.double(), (48,), weight.double(), 1e-6)
    torchs = nn.functional.rms_norm(h, (48,), weight, 1e-6)
    kept = h.clone()
    assert relative_error(rms_norm(h, weight, 1e-6), exact) <= 1.01 * relative_error(torchs, exact)
    assert torch.equal(h, kept)

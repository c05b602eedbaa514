"""The field's Triton kernel against the head's own operations, on a GPU or in Triton's interpreter.

Without a GPU: ``pip install triton``, then
``TRITON_INTERPRET=1 python -m pytest tests/functional/test_field_kernel.py``.
"""

import pytest
import torch
from torch import nn

from pixnerd_plugin.models.heads import NeuralFieldHead, fused, neural_field
from tests.golden import relative_error
from tests.interpreted import require_triton

DEVICE = require_triton()

# As published, at the density of training and beyond it; each normalisation; widths that are no power of two.
CASES = [
    dict(size=(16, 16), depth=2),
    dict(size=(9, 15), width=36, depth=1, normalize='fc1'),
    dict(size=(5, 7), width=24, depth=3, normalize='fc1_fc2'),
    dict(size=(1, 1), width=12, depth=1, mlp_ratio=1),
]


@pytest.fixture(autouse=True)
def kernel_in_every_dtype(monkeypatch):
    monkeypatch.setattr(fused, 'takes', lambda head, vectors: True)


def field(dtype=torch.float32, size=(16, 16), patches=2, **more):
    """A head, and patch vectors and pixels for it that want gradients."""
    torch.manual_seed(0)
    head = NeuralFieldHead(dim=16, patch_size=8, **more)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    s, pixels = torch.randn(1, patches, 16), torch.randn(1, patches, *size, 3)
    return head.to(DEVICE, dtype), *(tensor.to(DEVICE, dtype).requires_grad_() for tensor in (s, pixels))


def evaluated(head, s, pixels, kernel, positions=None):
    """The velocity, and the gradients of patch vectors, pixels and all weights."""
    head.kernel = kernel
    v = head(s, pixels, positions)
    direction = torch.randn(v.shape, generator=torch.Generator().manual_seed(1)).to(v)
    return [v.detach(), *torch.autograd.grad(v, [s, pixels, *head.parameters()], direction)]


@pytest.mark.parametrize('case', CASES, ids=lambda case: 'x'.join(map(str, case['size'])))
def test_velocity_and_gradients_are_those_of_the_operations(case):
    parts = field(**case)
    for found, expected in zip(evaluated(*parts, True), evaluated(*parts, False), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_bfloat16_is_as_exact_as_the_operations():
    exact = evaluated(*field(torch.float64, size=(8, 9)), False)
    parts = field(torch.bfloat16, size=(8, 9))
    found, plain = evaluated(*parts, True), evaluated(*parts, False)
    for ours, operations, right in zip(found, plain, exact, strict=True):
        assert ours.dtype == operations.dtype
        assert relative_error(ours, right) <= 1.1 * relative_error(operations, right) + 1e-3


def test_autocast_gives_bfloat16_from_float32_weights():
    parts = field(size=(4, 5), depth=1)
    with torch.autocast(DEVICE, torch.bfloat16):
        found, expected = evaluated(*parts, True), evaluated(*parts, False)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    for ours, operations in zip(found, expected, strict=True):
        assert relative_error(ours, operations) < 0.03


@torch.no_grad()
def test_pixels_anywhere_in_groups_of_patches(monkeypatch):
    head, s, pixels = field(size=(3, 5), width=16, depth=1, patches=5, alignment='centers')
    positions = (torch.tensor([-0.1, 0.3, 0.7], device=DEVICE), torch.linspace(0.1, 1.1, 5, device=DEVICE))
    head.kernel = False
    expected = head(s, pixels, positions)
    monkeypatch.setattr(neural_field, 'GENERATED_BYTES', 2 * head.generator.out_features * 4)
    head.kernel = True
    assert relative_error(head(s, pixels, positions), expected) < 1e-5


def test_columns_of_zeros_stay_finite():
    head, s, pixels = field(size=(2, 2), width=16, depth=1)
    nn.init.zeros_(head.generator.weight)
    nn.init.zeros_(head.generator.bias)
    assert head(s, pixels).isfinite().all()


def test_a_second_derivative_is_refused_rather_than_wrong():
    head, s, pixels = field(size=(2, 2), width=16, depth=1)
    (first,) = torch.autograd.grad(head(s, pixels).square().sum(), pixels, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()


def test_the_trial_passes(monkeypatch):
    fused._agrees.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(fused, 'DEVICES', (DEVICE,))
    head, s, _ = field(torch.bfloat16, width=16, depth=1)
    assert fused.takes(head, s)

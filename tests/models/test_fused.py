"""When a field's kernel is used; tests of the kernel, which need Triton, are in ``functional/test_field_kernel.py``."""

import logging

import pytest
import torch
from torch import nn

from pixnerd_plugin.models.heads import NeuralFieldHead, fused
from tests.golden import relative_error


class Kernel:
    """Stands in for the kernel: the head's operations, times ``factor``."""

    def __init__(self):
        self.factor = 1.0
        self.calls = 0

    def __call__(self, head, generated, pixels, table):
        self.calls += 1
        if self.factor is None:
            raise OSError('no compiler')
        side = (pixels.shape[0], 1, *pixels.shape[1:])
        return self.factor * head._evaluate(head._weights(generated), pixels.view(side), table[None]).squeeze(1)


@pytest.fixture
def kernel(monkeypatch):
    """A machine with Triton, whose kernels run on the CPU too."""
    stand_in = Kernel()
    monkeypatch.setattr(fused, 'DEVICES', ('cpu',))
    monkeypatch.setattr(fused, '_has_triton', lambda: True)
    monkeypatch.setattr(fused, 'evaluate', stand_in)
    fused._agrees.cache_clear()
    yield stand_in
    fused._agrees.cache_clear()


def field(dtype=torch.bfloat16, **more):
    torch.manual_seed(0)
    head = NeuralFieldHead(dim=12, patch_size=4, **dict(dict(width=16, depth=1), **more)).to(dtype)
    return head, torch.randn(2, 5, 12).to(dtype), torch.randn(2, 5, 4, 6, 3).to(dtype)


def test_a_kernel_that_agrees_is_used(kernel):
    head, s, pixels = field()
    state = torch.get_rng_state()
    found = head(s, pixels)
    assert kernel.calls == 2  # its trial first
    assert torch.equal(torch.get_rng_state(), state)
    head.kernel = False
    assert relative_error(found, head(s, pixels)) < 1e-2
    assert kernel.calls == 2


@pytest.mark.parametrize(('factor', 'why'), [(1.2, 'differs from them by 20'), (None, 'OSError: no compiler')])
def test_one_that_fails_its_trial_is_not_used_and_said_once(kernel, caplog, factor, why):
    kernel.factor = factor
    head, s, pixels = field()
    with caplog.at_level(logging.WARNING):
        found = head(s, pixels), head(s, pixels)
    assert [why in record.message for record in caplog.records] == [True]
    head.kernel = False
    expected = head(s, pixels)
    assert [torch.equal(v, expected) for v in found] == [True, True]


def test_the_trial_takes_a_head_in_inference_mode_and_under_autocast(kernel):
    head, s, pixels = field(torch.float32)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        head(s, pixels)
    assert kernel.calls == 2


@pytest.mark.parametrize('more', [dict(), dict(width=72)], ids=['float32', 'too wide'])
def test_fields_that_gain_nothing_are_left_alone(kernel, more):
    head, s, pixels = field(torch.bfloat16 if more else torch.float32, **more)
    head(s, pixels)
    assert kernel.calls == 0


def test_float32_where_tf32_may_be_used(kernel, monkeypatch):
    monkeypatch.setattr(torch, 'get_float32_matmul_precision', lambda: 'high')
    head, s, pixels = field(torch.float32)
    head(s, pixels)
    assert kernel.calls == 2


def test_layers_of_others_keep_their_own_way(kernel):
    class HostLinear(nn.Linear):
        pass

    for part in ('pixel_embed', 'proj'):
        head, s, pixels = field()
        getattr(head, part).__class__ = HostLinear
        head(s, pixels)
    assert kernel.calls == 0


def test_forward_derivatives_and_compilers_take_the_operations(kernel, monkeypatch):
    head, s, pixels = field()
    torch.func.jvp(lambda p: head(s, p), (pixels,), (torch.ones_like(pixels),))
    with torch.autograd.forward_ad.dual_level():
        head(s, torch.autograd.forward_ad.make_dual(pixels, torch.ones_like(pixels)))
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    head(s, pixels)
    assert kernel.calls == 0


def test_without_triton_or_on_a_cpu_nothing_is_tried(kernel, monkeypatch):
    head, s, pixels = field()
    monkeypatch.setattr(fused, '_has_triton', lambda: False)
    head(s, pixels)
    monkeypatch.setattr(fused, '_has_triton', lambda: True)
    monkeypatch.setattr(fused, 'DEVICES', ('cuda',))
    head(s, pixels)
    assert kernel.calls == 0

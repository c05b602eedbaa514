"""Tables that are kept, and rotations of both kinds."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pixnerd_plugin.functional import rotary, tables
from pixnerd_plugin.functional.rotary import rotary_table, rotate
from pixnerd_plugin.functional.tables import kept
from tests.golden import relative_error


@pytest.fixture
def ramp():
    """A kept function of a length, and the lengths it was computed for."""
    computed = []

    @kept
    def make(num):
        computed.append(num)
        return torch.arange(num).float()

    return make, computed


def test_a_table_is_made_once_and_the_oldest_is_forgotten(ramp):
    make, computed = ramp
    assert make(3) is make(3)
    for num in range(100, 100 + tables.KEPT):
        make(num)
    make(3)
    assert computed.count(3) == 2


def test_a_large_table_is_made_anew(ramp, monkeypatch):
    make, computed = ramp
    monkeypatch.setattr(tables, 'LARGEST_KEPT', 16)
    make(4), make(4), make(5), make(5)
    assert computed == [4, 5, 5]


def test_a_table_made_in_inference_mode_can_be_trained_with(ramp):
    make, _ = ramp
    with torch.inference_mode():
        make(3)
    weight = torch.ones(3, requires_grad=True)
    (weight * make(3)).sum().backward()
    assert torch.equal(weight.grad, make(3))


def test_fake_tensors_and_real_ones_do_not_mix(ramp):
    make, _ = ramp
    with FakeTensorMode():
        fake = make(3)
    assert type(fake) is not type(make(3))
    with FakeTensorMode():
        assert (torch.ones(3) + make(3)).shape == (3,)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_complex_and_real_rotations_agree(monkeypatch, dtype):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 6, 8).to(dtype)
    table = rotary_table(torch.linspace(0, 3, 6), torch.linspace(2, 1, 6), 8)
    expected = rotate(q, k, table)
    # As on a GPU, with and without derivatives.
    kept = q.clone()
    with torch.no_grad():
        drawn = rotary._turn(torch.stack((q, k)), table)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    for found in (rotate(q, k, table), drawn):
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            assert relative_error(a, b) < (1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(q, kept)


@torch.no_grad()
def test_rotation_away_from_the_cpu_is_differentiated_forward():
    q, table = torch.randn(2, 6, 8), rotary_table(torch.linspace(0, 3, 6), torch.linspace(2, 1, 6), 8)
    # A rotation is linear.
    _, slope = torch.func.jvp(lambda q: rotary._turn(q, table), (q,), (2 * q,))
    torch.testing.assert_close(slope, 2 * rotary._turn(q, table))


def test_a_pair_of_channels_turns_by_its_angle():
    q = torch.zeros(1, 2, 8)
    q[..., 0] = q[..., 2] = 1
    turned, _ = rotate(q, q, rotary_table(torch.tensor([0.5, 1.0]), torch.tensor([0.25, 2.0]), 8))
    x, y = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 2.0])
    expected = torch.stack((x.cos(), x.sin(), y.cos(), y.sin()), dim=-1)
    torch.testing.assert_close(turned[0, :, :4], expected)


def test_both_are_turned_by_one_launch_away_from_the_cpu():
    q = torch.empty(1, 2, 4, 8, device='meta')
    calls = []
    turn = rotary._turn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotary, '_turn', lambda q, table: calls.append(q.shape) or turn(q, table))
        turned = rotate(q, q, torch.empty(4, 4, 2, 2, device='meta'))
    assert calls == [(2, 1, 2, 4, 8)]
    assert [part.shape for part in turned] == [q.shape, q.shape]

import pytest
import torch
from torch import nn

from pixnerd_plugin.optim import Bf16OptimWrapper, FiniteOptimWrapper


def wrap(kind=FiniteOptimWrapper, **kwargs):
    model = nn.Linear(4, 1)
    return model, kind(torch.optim.AdamW(model.parameters(), lr=0.1), **kwargs)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_step_with_a_non_finite_gradient_is_left_out(value):
    model, wrapper = wrap()
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.full((1, 4), value)).sum())
    assert wrapper.last_step_skipped
    assert torch.equal(model.weight, before)
    wrapper.update_params(model(torch.ones(1, 4)).sum())
    assert not wrapper.last_step_skipped
    assert not torch.equal(model.weight, before)
    assert model.weight.isfinite().all()


def test_too_many_in_a_row_stop_training():
    model, wrapper = wrap(max_skipped=2)
    for _ in range(2):
        wrapper.update_params(model(torch.full((1, 4), torch.nan)).sum())
    with pytest.raises(FloatingPointError, match='more than 2 steps in a row'):
        wrapper.update_params(model(torch.full((1, 4), torch.nan)).sum())


def test_clipping_bounds_the_step():
    model = nn.Linear(4, 1, bias=False)
    wrapper = FiniteOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), clip_grad=dict(max_norm=0.5))
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.full((1, 4), 100.0)).sum())
    assert (model.weight - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_bf16_runs_the_network_in_bf16_and_keeps_float32_weights():
    model, wrapper = wrap(Bf16OptimWrapper, accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 4)
    for _ in range(2):
        with wrapper.optim_context(model):
            out = model(torch.ones(1, 4))
        assert out.dtype == torch.bfloat16
        before = model.weight.detach().clone()
        wrapper.update_params(out.float().sum())
    assert not torch.equal(model.weight, before)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(t.dtype == torch.float32 for state in wrapper.optimizer.state.values() for t in state.values())

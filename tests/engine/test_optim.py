import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import OPTIMIZERS
from torch import nn

from pixnerd_plugin.engine.algorithm import PixNerd
from pixnerd_plugin.engine.optim import Bf16OptimWrapper, FiniteOptimWrapper
from pixnerd_plugin.models.losses import FlowMatchREPALoss


def wrap(kind=FiniteOptimWrapper, optimizer=torch.optim.AdamW, fused=None, **kwargs):
    model = nn.Linear(4, 1)
    settings = dict(lr=0.1) if fused is None else dict(lr=0.1, fused=fused)
    return model, kind(optimizer(model.parameters(), **settings), **kwargs)


@pytest.mark.parametrize(
    'options',
    [{}, dict(fused=True), dict(optimizer=OPTIMIZERS.get('TorchAdafactor'))],
    ids=['adamw', 'fused', 'adafactor'],
)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_step_with_a_non_finite_gradient_is_left_out(value, options):
    model, wrapper = wrap(**options)
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.full((1, 4), value)).sum())
    assert wrapper.last_step_skipped
    assert torch.equal(model.weight, before)
    wrapper.update_params(model(torch.ones(1, 4)).sum())
    assert not wrapper.last_step_skipped
    assert not torch.equal(model.weight, before)
    assert model.weight.isfinite().all()
    assert {int(state['step']) for state in wrapper.optimizer.state.values()} == {1}


def test_too_many_in_a_row_stop_training():
    model, wrapper = wrap(max_skipped=2)
    for _ in range(2):
        wrapper.update_params(model(torch.full((1, 4), torch.nan)).sum())
    with pytest.raises(FloatingPointError, match='more than 2 steps in a row'):
        wrapper.update_params(model(torch.full((1, 4), torch.nan)).sum())


def test_fused_and_unfused_steps_agree():
    weights = []
    for fused in (None, True):
        torch.manual_seed(0)
        model, wrapper = wrap(fused=fused, clip_grad=dict(max_norm=0.5))
        for scale in (1.0, float('nan'), 100.0):
            wrapper.update_params(model(torch.full((1, 4), scale)).sum())
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights)


def test_the_count_of_steps_left_out_survives_a_restart():
    model, wrapper = wrap(max_skipped=2)
    for _ in range(2):
        wrapper.update_params(model(torch.full((1, 4), torch.nan)).sum())
    _, resumed = wrap(max_skipped=2)
    resumed.load_state_dict(wrapper.state_dict())
    assert (resumed.skipped_in_a_row, resumed.skipped_steps) == (2, 2)


class FixedLoss(FlowMatchREPALoss):
    """Times and noise that depend on the picture alone, so that a batch and its parts see the same."""

    def forward(self, net, images, cond, null_cond=None):
        noise, t = images.flip(-1) * 2 + 0.1, images.mean((1, 2, 3)).sigmoid()
        return super().forward(net, images, cond, null_cond, noise, t, drop_mask=torch.zeros(len(t), dtype=torch.bool))


def accumulate(images, labels, batch_size):
    torch.manual_seed(0)
    backbone = dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=8, num_classes=10)
    head = dict(type='NeuralFieldHead', width=4, depth=1, num_frequencies=4)
    loss = FixedLoss(dim=16, projector_dim=16, teacher_dim=16)
    model = PixNerd(backbone | dict(head=head), dict(type='LabelConditioner', num_classes=10), loss)
    counts = len(images) // batch_size
    wrapper = FiniteOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=counts)
    wrapper.initialize_count_status(model, 0, counts)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        model.train_step(dict(inputs=images[part], data_samples=dict(label=labels[part])), wrapper)
    return torch.cat([p.detach().flatten() for p in model.backbone.parameters()])


def test_two_batches_of_16_accumulated_are_one_of_32():
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
    labels = torch.randint(0, 10, (32,))
    whole, parts, other = (accumulate(images, labels, size) for size in (32, 16, 32))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(other, whole)
    different = accumulate(images.flip(0)[:16].repeat(2, 1, 1, 1), labels, 32)
    assert (different - whole).abs().max() > 1e-5


def test_gradients_are_exchanged_once_an_accumulated_step(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        model = MMDistributedDataParallel(nn.Linear(4, 1), device_ids=None)
        exchanges = []

        def count(state, bucket):
            exchanges.append(bucket.index())
            return _done(bucket.buffer())

        model.register_comm_hook(None, count)
        wrapper = FiniteOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=3)
        wrapper.initialize_count_status(model, 0, 6)
        for _ in range(6):
            with wrapper.optim_context(model):
                loss = model(torch.ones(2, 4)).sum()
            wrapper.update_params(loss)
        assert len(exchanges) == 2
    finally:
        torch.distributed.destroy_process_group()


def _done(tensor):
    future = torch.futures.Future()
    future.set_result(tensor)
    return future


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


@pytest.mark.parametrize('emulated', [True, False])
def test_bf16_that_is_emulated_is_said(monkeypatch, emulated):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr('pixnerd_plugin.engine.optim.bf16_is_emulated', lambda: emulated)
    said = []
    monkeypatch.setattr('pixnerd_plugin.engine.optim.print_log', lambda message, **options: said.append(message))
    wrap(Bf16OptimWrapper)
    assert ['optim_wrapper.type=FiniteOptimWrapper' in line for line in said] == [True] * emulated

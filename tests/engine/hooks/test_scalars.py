from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from torch import nn

from pixnerd_plugin.engine.hooks import ScalarsHook


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = SimpleNamespace(per_image={})


@pytest.fixture
def runner(request):
    hub = MessageHub.get_instance(request.node.name)
    loader = SimpleNamespace(dataset=[0])
    runner = SimpleNamespace(
        message_hub=hub, hooks=[LoggerHook(interval=4)], iter=0, epoch=0, max_iters=100, max_epochs=1, model=Model(),
        train_dataloader=loader, optim_wrapper=None, _resume=False,
    )  # fmt: skip
    return runner


def steps(hook, runner, count):
    torch.manual_seed(0)
    seen = []
    for _ in range(count):
        t, flow = torch.rand(16), torch.rand(16)
        runner.model.loss.per_image = dict(t=t, loss_flow=flow)
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=flow.mean(), loss_flow=flow.mean()))
        runner.iter += 1
        seen.append((t, flow))
    return seen


def test_without_bins_the_losses_alone_are_logged(runner):
    hook = ScalarsHook(time_bins=0)
    hook.before_train(runner)
    steps(hook, runner, 4)
    assert set(runner.message_hub.log_scalars) == {'train/loss', 'train/loss_flow'}
    assert len(runner.message_hub.get_scalar('train/loss_flow').data[0]) == 4


def test_no_step_between_two_logs_brings_a_number_to_the_host(runner, monkeypatch):
    hook = ScalarsHook(time_bins=4)
    hook.before_train(runner)

    def refuse(self):
        raise AssertionError('the host waited for the device')

    with monkeypatch.context() as patch:
        for name in ('item', 'tolist', '__float__', '__bool__', 'cpu'):
            patch.setattr(torch.Tensor, name, refuse)
        steps(hook, runner, 3)
    assert 'train/loss' not in runner.message_hub.log_scalars
    steps(hook, runner, 1)
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 4


def test_losses_by_time_are_the_means_of_the_pictures_in_each_bin(runner):
    hook = ScalarsHook(time_bins=4)
    hook.before_train(runner)
    seen = steps(hook, runner, 4)
    t, flow = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for index, middle in enumerate(('0.125', '0.375', '0.625', '0.875')):
        values, counts = runner.message_hub.get_scalar(f'by_time/loss_flow_by_time/{middle}').data
        inside = (t >= index / 4) & (t < (index + 1) / 4)
        assert counts.sum() == inside.sum()
        assert values.sum() / counts.sum() == pytest.approx(flow[inside].mean().item(), rel=1e-5)

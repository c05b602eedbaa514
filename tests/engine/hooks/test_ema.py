from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pixnerd_plugin.engine.hooks import EMAHook


class Model(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.backbone = nn.Linear(3, 2, dtype=dtype)
        self.backbone.bias.requires_grad_(False)
        self.projector = nn.Linear(2, 2)


class Wrapper:
    """Stands for an optimiser wrapper with ``counts`` iterations a step."""

    def __init__(self, counts=1):
        self.counts, self.done = counts, 0

    def should_update(self):
        return self.done % self.counts == 0


def start(model, decay=0.9, resume=False):
    hook = EMAHook(decay)
    runner = SimpleNamespace(model=model, optim_wrapper=Wrapper(), _resume=resume, logger=None)
    hook.before_run(runner)
    if not resume:
        hook.before_train(runner)
    return hook, runner


def train(hook, runner, iterations):
    history = []
    for i in range(iterations):
        runner.optim_wrapper.done += 1
        if runner.optim_wrapper.should_update():
            nn.init.normal_(runner.model.backbone.weight)
            history.append(runner.model.backbone.weight.detach().double().clone())
        hook.after_train_iter(runner, i)
    return history


def save(hook, model):
    checkpoint = dict(state_dict=dict(model.state_dict()))
    hook.before_save_checkpoint(None, checkpoint)
    return {key: {name: t.clone() for name, t in state.items()} for key, state in checkpoint.items()}


@pytest.mark.parametrize('counts', [1, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_average_has_its_closed_form(counts, dtype):
    model = Model(dtype)
    first = model.backbone.weight.detach().double().clone()
    hook, runner = start(model, decay=0.9)
    runner.optim_wrapper.counts = counts
    history = train(hook, runner, 6)
    n = len(history)
    expected = 0.9**n * first + sum(0.1 * 0.9 ** (n - 1 - i) * weight for i, weight in enumerate(history))
    assert hook.steps == n == 6 // counts
    assert hook.shadow['backbone.weight'].dtype == torch.float32
    torch.testing.assert_close(hook.shadow['backbone.weight'].double(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_trainable_parameters_of_the_module_are_followed():
    hook, _ = start(Model())
    assert list(hook.shadow) == ['backbone.weight']


def test_with_an_interval_the_average_moves_as_far_in_fewer_updates():
    model = Model()
    hook = EMAHook(0.9, interval=3, device='cpu')
    runner = SimpleNamespace(model=model, optim_wrapper=Wrapper(), _resume=False, logger=None)
    hook.before_run(runner)
    hook.before_train(runner)
    first = hook.shadow['backbone.weight'].clone()
    third, sixth = (train(hook, runner, 3)[-1] for _ in range(2))
    expected = 0.9**6 * first + (1 - 0.9**3) * (0.9**3 * third + sixth)
    torch.testing.assert_close(hook.shadow['backbone.weight'].double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_and_average_change_places_for_a_look_and_both_come_back_exactly(dtype):
    model = Model(dtype)
    hook, runner = start(model)
    train(hook, runner, 3)
    raw, average = model.backbone.weight.detach().clone(), hook.shadow['backbone.weight'].clone()
    places = model.backbone.weight.data_ptr(), hook.shadow['backbone.weight'].data_ptr()
    with hook.applied():
        assert torch.equal(model.backbone.weight, average.to(dtype))
        # So there is no third copy of the weights.
        assert torch.equal(hook.shadow['backbone.weight'].to(dtype), raw)
    assert torch.equal(model.backbone.weight, raw)
    assert torch.equal(hook.shadow['backbone.weight'], average)
    assert (model.backbone.weight.data_ptr(), hook.shadow['backbone.weight'].data_ptr()) == places


def test_a_checkpoint_has_the_average_as_weights_and_gives_both_back():
    model = Model()
    hook, runner = start(model)
    train(hook, runner, 3)
    checkpoint = save(hook, model)
    assert torch.equal(checkpoint['state_dict']['backbone.weight'], hook.shadow['backbone.weight'])
    assert torch.equal(checkpoint['ema_state_dict']['module.backbone.weight'], model.backbone.weight)

    resumed, resumed_runner = start(Model(), resume=True)
    resumed.after_load_checkpoint(resumed_runner, checkpoint)
    assert torch.equal(checkpoint['state_dict']['backbone.weight'], model.backbone.weight)
    assert torch.equal(resumed.shadow['backbone.weight'], hook.shadow['backbone.weight'])
    assert resumed.steps == 3


def test_resuming_another_architecture_is_refused():
    model = Model()
    hook, _ = start(model)
    checkpoint = save(hook, model)
    del checkpoint['ema_state_dict']['module.backbone.weight']
    resumed, runner = start(Model(), resume=True)
    with pytest.raises(ValueError, match=r'no average of backbone\.weight'):
        resumed.after_load_checkpoint(runner, checkpoint)

from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from pixnerd_plugin.engine.hooks import EMAHook, StepTimerHook
from pixnerd_plugin.registry import HOOKS
from tests.training import train


def test_time_between_iterations_counts_for_nothing(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr('time.time', lambda: clock.now)
    hub = MessageHub.get_instance('step_timer')
    runner = SimpleNamespace(message_hub=hub, iter=0, max_iters=4)
    hook = StepTimerHook()
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    # A grid, a save or a validation of 100 seconds, one of waiting for data, four for the step.
    for runner.iter in range(2):
        for call, seconds in ((hook.before_load, 100), (None, 1), (hook.before_train_iter, 0), (None, 4)):
            clock.now += seconds
            if call is not None:
                call(runner, *(() if call == hook.before_load else (runner.iter,)))
        hook.after_train_iter(runner, runner.iter)
    assert hub.get_scalar('train/time').mean() == pytest.approx(5)
    assert hub.get_scalar('train/data_time').mean() == pytest.approx(1)
    assert hub.get_info('eta') == pytest.approx(2 * 5)


calls: list[str] = []


@HOOKS.register_module()
class CallsHook(Hook):
    """Says when the loop calls it, last of all hooks."""

    priority = 'LOWEST'

    def before_load(self, runner):
        calls.append('before_load')

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        calls.append('loaded')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        calls.append('all done')


def test_the_clock_starts_when_all_that_follows_a_step_is_done(tmp_path):
    calls.clear()
    runner = train(tmp_path, train_cfg__max_iters=2, custom_hooks=[dict(type='CallsHook')])
    assert calls == ['before_load', 'loaded', 'all done'] * 2
    kinds = [type(hook) for hook in runner.hooks]
    # The EMA is part of a step.
    assert kinds.index(EMAHook) < kinds.index(StepTimerHook)

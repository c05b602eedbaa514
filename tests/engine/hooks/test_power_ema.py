import runpy
import sys

import pytest
import torch

from pixnerd_plugin import load_backbone
from pixnerd_plugin.engine.hooks import PowerEMAHook
from tests.training import ROOT, assert_same_training_state, load, train

TOOL = ROOT / 'tools/analysis_tools/posthoc_ema.py'
LONG = dict(
    train_cfg__max_iters=96,
    param_scheduler=None,
    default_hooks__checkpoint=dict(interval=48),
    default_hooks__logger__interval=48,
    default_hooks__samples__interval=1000,
)


def hooks(*sigma_rels, interval=4):
    return [dict(type='PowerEMAHook', interval=interval, sigma_rels=sigma_rels, dtype='float32')]


@pytest.fixture(scope='module')
def tracked(tmp_path_factory):
    """A run that tracks the two lengths that are usual, and another directly."""
    work_dir = tmp_path_factory.mktemp('tracked')
    train(work_dir, **LONG, custom_hooks=hooks(0.05, 0.1, 0.075))
    return work_dir


def weights(path):
    return torch.cat([p.detach().flatten() for p in load_backbone(path).parameters()])


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['posthoc_ema.py', *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_an_average_built_afterwards_is_the_one_that_was_tracked(tmp_path, tracked, monkeypatch):
    stored = tmp_path / 'ema'
    stored.mkdir()
    for path in (tracked / 'ema').glob('*_sigma_0.*.safetensors'):
        if '0.075' not in path.name:
            (stored / path.name).symlink_to(path)
    run(monkeypatch, tmp_path, '--sigma-rel', '0.075', '--out', tmp_path / 'out')
    run(monkeypatch, stored, '--sigma-rel', '0.075', '--iteration', '60', '--out', tmp_path / 'out')
    for iteration in (96, 60):
        name = f'iter_{iteration}_sigma_0.075.safetensors'
        direct, built = weights(tracked / 'ema' / name), weights(tmp_path / 'out' / name)
        nearest = min(
            (direct - weights(stored / f'iter_{iteration}_sigma_{s}.safetensors')).norm() for s in ('0.05', '0.1')
        )
        assert (built - direct).norm() < 0.01 * nearest


def test_a_resumed_run_averages_as_the_uninterrupted_one(tmp_path):
    options = dict(custom_hooks=hooks(0.05, 0.2, interval=3), optim_wrapper__accumulative_counts=2)
    train(tmp_path / 'whole', **options)
    train(tmp_path / 'parts', **options, stop_at=4)
    train(tmp_path / 'parts', **options, resume=True)
    whole, parts = (load(tmp_path / name / 'iter_6.pth') for name in ('whole', 'parts'))
    assert_same_training_state(whole, parts)
    assert whole['power_ema']['steps'] == parts['power_ema']['steps'] == 3
    for sigma_rel, averages in whole['power_ema']['averages'].items():
        for name, tensor in averages.items():
            assert torch.equal(tensor, parts['power_ema']['averages'][sigma_rel][name])
    for path in (tmp_path / 'whole/ema').iterdir():
        assert path.read_bytes() == (tmp_path / 'parts/ema' / path.name).read_bytes()
    with pytest.raises(ValueError, match=r'no average of sigma_rel=0\.1, which needs every step from the first'):
        train(tmp_path / 'parts', **options | dict(custom_hooks=hooks(0.1)), resume=True)


def test_mistakes_are_one_line(tmp_path, tracked, monkeypatch):
    mistakes = {
        'must be above 0 and below 0.289': [tracked, '--sigma-rel', '0.05', '0.4'],
        'train with PowerEMAHook in custom_hooks': [tmp_path, '--sigma-rel', '0.05'],
        'no average was stored at iteration 61, only at 4, 8': [tracked, '--sigma-rel', '0.05', '--iteration', '61'],
    }
    for line, arguments in mistakes.items():
        with pytest.raises(SystemExit, match=line):
            run(monkeypatch, *arguments, '--out', tmp_path / 'out')
    for options, line in (
        (dict(interval=0), 'interval must be at least 1'),
        (dict(interval=1, sigma_rels=(0.1, 0.1)), 'must be different numbers'),
        (dict(interval=1, dtype='int8'), "dtype must be 'float16' or 'float32', got 'int8'"),
    ):
        with pytest.raises(ValueError, match=line):
            PowerEMAHook(**options)


def test_averages_of_another_start_are_set_aside(tmp_path):
    """One that went further than its last checkpoint, or has none, is not mixed with the one that goes on."""
    options = dict(custom_hooks=hooks(0.1, interval=1), default_hooks__checkpoint__interval=2)
    train(tmp_path, **options, stop_at=3)
    # The next start stores at other iterations.
    train(tmp_path, **options | dict(custom_hooks=hooks(0.1, interval=4)), resume=True)
    names = sorted(path.name for path in (tmp_path / 'ema').iterdir())
    kept = [f'iter_{iteration}_sigma_0.1.safetensors' for iteration in (1, 2, 4, 6)]
    assert names == sorted([*kept, 'iter_3_sigma_0.1.safetensors.old'])

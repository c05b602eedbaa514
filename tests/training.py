"""Helpers for tests that train the tiny network of ``data/tiny_digits.py``."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.runner import Runner

import pixnerd_plugin.engine  # noqa: F401
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.engine.logs import is_measured
from pixnerd_plugin.engine.resume import find_checkpoint

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'tests' / 'data'
CONFIG = DATA / 'tiny_digits.py'
ENVIRONMENT = dict(
    os.environ,
    OMP_NUM_THREADS='1',
    PYTHON=sys.executable,
    PYTHONPATH=os.pathsep.join([str(ROOT), str(DATA), os.environ.get('PYTHONPATH', '')]),
)

_runs = 0


def train(work_dir: Path, resume: bool = False, **options) -> Runner:
    """Train in this process; ``options`` are config entries with __ for dots."""
    global _runs
    _runs += 1
    config = load_config(CONFIG, {name.replace('__', '.'): value for name, value in options.items()})
    config.work_dir = str(work_dir)
    # mmengine keeps one logger, message hub and visualizer a name, and the time in it has whole seconds.
    config.experiment_name = f'test_{_runs}'
    if resume:
        config.resume, config.load_from = True, str(find_checkpoint(work_dir))
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def signal_hook(**settings) -> list[dict]:
    """``custom_hooks`` with one that sends a signal at an iteration."""
    return [dict(type='SignalHook', **settings)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def run_tool(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env=ENVIRONMENT | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def logged(work_dir: Path) -> list[dict]:
    """The logged scalars but times and rates, by iteration, over all starts of a run."""
    lines = [line for file in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in file.open()]
    entries = [json.loads(line) for line in lines]
    assert len({entry['step'] for entry in entries}) == len(entries), 'an iteration was logged twice'
    return [{key: value for key, value in entry.items() if not is_measured(key)} for entry in entries]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same_training_state(a: dict, b: dict) -> None:
    """Weights, averages, optimiser and schedules of two checkpoints are equal to the last bit."""
    for key in ('state_dict', 'ema_state_dict'):
        assert a[key].keys() == b[key].keys()
        for name in a[key]:
            assert torch.equal(a[key][name], b[key][name]), f'{key}: {name}'
    for index, moments in a['optimizer']['state'].items():
        for name in moments:
            assert torch.equal(moments[name], b['optimizer']['state'][index][name]), f'optimizer: {index} {name}'
    assert a['param_schedulers'] == b['param_schedulers']
    assert a['meta']['iter'] == b['meta']['iter']

"""Helpers for tests that train the tiny network of ``data/tiny_digits.py``."""

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

import pixnerd_plugin.engine  # noqa: F401
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.engine.logs import is_measured
from pixnerd_plugin.engine.resume import find_checkpoint

from .forked import forked_python

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'tests' / 'data'
CONFIG = DATA / 'tiny_digits.py'
# A port of the system's choice may be taken by another test's connection before it is used; it chooses above these.
_ports = itertools.cycle(random.Random(os.getpid()).sample(range(20000, 30000), 1000))
_runs = itertools.count()


class StopHook(Hook):
    """End training after so many iterations, as if it had been interrupted there."""

    priority = 'LOWEST'

    def __init__(self, at: int):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training = runner.iter + 1 == self.at


def train(work_dir: Path, resume: bool | Path = False, stop_at: int | None = None, **options) -> Runner:
    """Train in this process; ``options`` are config entries with __ for dots. ``resume`` may name a checkpoint."""
    config = load_config(CONFIG, {name.replace('__', '.'): value for name, value in options.items()})
    config.work_dir = str(work_dir)
    # mmengine keeps one logger, message hub and visualizer a name, and the time in it has whole seconds.
    config.experiment_name = f'test_{next(_runs)}'
    if resume:
        found = resume if isinstance(resume, Path) else find_checkpoint(work_dir)
        config.resume, config.load_from = True, str(found)
    # mmengine names the log of a start by the second.
    while (work_dir / time.strftime('%Y%m%d_%H%M%S')).exists():
        time.sleep(0.02)
    runner = Runner.from_cfg(config)
    if stop_at:
        runner.register_hook(StopHook(stop_at))
    runner.train()
    return runner


def signal_hook(**settings) -> list[dict]:
    """``custom_hooks`` with one that sends a signal at an iteration."""
    return [dict(type='SignalHook', **settings)]


def free_port() -> str:
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(('127.0.0.1', port))
            return str(port)


def start_tool(
    *command: str | Path, fresh: bool = False, environment: Mapping[str, str] | None = None, **options
) -> subprocess.Popen[str]:
    """Start a program in a process of its own, in the repository's root.

    Python (``sys.executable``) and what it or a script starts with Python are forked from a process that has imported
    torch and mmengine; ``fresh`` starts them as a user does.
    """
    python = sys.executable if fresh else forked_python()
    command = [python if part == sys.executable else str(part) for part in command]
    paths = [str(ROOT), str(DATA), os.environ.get('PYTHONPATH', '')]
    base = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=python, PYTHONPATH=os.pathsep.join(paths))
    return subprocess.Popen(command, cwd=ROOT, env=base | dict(environment or {}), text=True, **options)


def run_tool(*command: str | Path, fresh: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program as :func:`start_tool` does; returns its exit code and what it printed."""
    pipe = subprocess.PIPE
    with start_tool(*command, fresh=fresh, environment=environment, stdout=pipe, stderr=pipe) as process:
        try:
            output = process.communicate(timeout=300)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


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

import os
import re
import runpy
import sys

import pytest
import torch

from pixnerd_plugin.engine.hooks import EMAHook
from tests.training import CONFIG, DATA, ROOT, free_port, load, run_tool, train

TRAIN = [sys.executable, 'tools/train.py', CONFIG]
SRUN = """#!/bin/sh
echo "$SAVE_SECONDS" "$@" >> "{folder}/calls"
exit {code}
"""


def test_a_dry_run_says_what_training_costs_and_writes_nothing(tmp_path, monkeypatch, capsys):
    swapped = []
    applied = EMAHook.applied
    monkeypatch.setattr(EMAHook, 'applied', lambda hook: (swapped.append(hook), applied(hook))[1])
    monkeypatch.syspath_prepend(DATA)
    command = ['train.py', CONFIG, '--work-dir', tmp_path / 'work', '--dry-run']
    monkeypatch.setattr(sys, 'argv', [str(part) for part in command])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    assert stop.value.code == 0
    assert swapped
    output = capsys.readouterr().out
    for word in (
        'parameters',
        'fingerprint',
        'GiB',
        'FLOPs',
        '6 iterations',
        'optimiser steps of 4',
        'pictures/s',
        'days',
    ):
        assert word in output
    assert float(re.search(r'saving +([\d.e-]+) GiB a checkpoint', output)[1]) > 1e-5
    assert float(re.search(r'peak ([\d.]+) GiB resident on the host, a save included', output)[1]) > 0.05
    assert not (tmp_path / 'work').exists()


@pytest.mark.slow
def test_another_recipe_is_refused_unless_forced(tmp_path):
    train(tmp_path, stop_at=2)
    command = [*TRAIN, '--work-dir', tmp_path]
    changes = ['--cfg-options', 'optim_wrapper.optimizer.lr=0.5', 'train_dataloader.batch_size=2']
    done = run_tool(*command)
    assert done.returncode == 1
    assert re.search(r'holds a run already \(iter_2.pth\).*--resume', done.stderr.strip().splitlines()[-1])
    done = run_tool(*command, '--resume', '--force', *changes)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert 'optim_wrapper.optimizer.lr was 0.01 and is 0.5. Undo that, or take it with --reset-schedule' in last
    forced = run_tool(*command, '--resume', '--force', '--reset-schedule', *changes)
    assert forced.returncode == 0, forced.stderr[-2000:]
    final = load(tmp_path / 'iter_6.pth')
    assert final['optimizer']['param_groups'][0]['initial_lr'] == 0.5
    # Two iterations of four samples, then four of two: the data goes on where it was.
    assert final['meta']['visits'] == 2 * 4 + 4 * 2


@pytest.mark.slow
def test_a_refused_resume_of_several_processes_ends_with_its_line(tmp_path):
    command = ['tools/dist_train.sh', CONFIG, '2', '--work-dir', tmp_path, '--resume', tmp_path / 'iter_9.pth']
    done = run_tool(*command, PORT=free_port())
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r'\[rank [01]\] error: checkpoint .*iter_9\.pth does not exist', last)


@pytest.mark.parametrize(('code', 'job', 'status'), [(75, '17', 0), (75, '', 75), (1, '17', 1), (0, '17', 0)])
def test_slurm_requeues_what_has_saved_and_nothing_else(tmp_path, code, job, status):
    for name in ('srun', 'scontrol'):
        program = tmp_path / name
        program.write_text(SRUN.format(folder=tmp_path, code=code if name == 'srun' else 0))
        program.chmod(0o755)
    environment = dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', SLURM_JOB_ID=job, SLURM_RESTART_COUNT='1')
    done = run_tool('tools/slurm_train.sh', 'gpu', 'name', CONFIG, '--seed', '1', **environment)
    assert done.returncode == status, done.stderr
    calls = (tmp_path / 'calls').read_text().splitlines()
    assert calls[0].endswith('--launcher slurm --seed 1 --resume')
    # The signal, the wait for the last to save, and what the processes know are one time.
    assert '--wait=300 --signal=TERM@300' in calls[0]
    assert calls[0].startswith('300 ')
    assert calls[1:] == (['300 requeue 17'] if code == 75 and job else [])


@pytest.mark.parametrize('has_gpu', [True, False])
def test_float32_products_use_tf32_on_a_gpu_alone(monkeypatch, has_gpu):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_gpu)
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr(sys, 'argv', ['train.py', 'absent.py'])
    try:
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
        assert torch.get_float32_matmul_precision() == ('high' if has_gpu else precision)
    finally:
        torch.set_float32_matmul_precision(precision)

import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver

import pytest

from pixnerd_plugin.engine.loops import ResumableTrainLoop
from pixnerd_plugin.registry import TRANSFORMS
from tests.training import CONFIG, start_tool, train


def test_no_process_with_threads_is_forked_for_data(tmp_path, monkeypatch):
    def refuse():
        raise AssertionError('the training process, which has threads, was forked')

    monkeypatch.setattr(os, 'fork', refuse)
    train(tmp_path, train_dataloader__num_workers=1, train_cfg__max_iters=1)
    assert (tmp_path / 'iter_1.pth').exists()


@pytest.mark.filterwarnings('ignore:Got pickle error')
def test_what_pickle_does_not_take_is_named(tmp_path):
    @TRANSFORMS.register_module(name='Local', force=True)
    class Local:
        def __call__(self, results):
            return results

    pipeline = [dict(type='Local'), dict(type='PackInputs')]
    with pytest.raises(ValueError, match=r'data workers cannot start: .*Local.*num_workers=0'):
        train(tmp_path, train_dataloader__num_workers=1, train_dataloader__dataset__pipeline=pipeline)


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='there is no such server')
def test_the_server_may_die_with_its_workers(tmp_path, monkeypatch, capfd):
    """As when a scheduler sends SIGTERM to all processes of a job."""
    run_iter = ResumableTrainLoop.run_iter

    def killed(loop, batch):
        if loop.iter == 1:
            for pid in (loop._batches._workers[0].pid, forkserver._forkserver._forkserver_pid):
                os.kill(pid, signal.SIGTERM)
        run_iter(loop, batch)

    monkeypatch.setattr(ResumableTrainLoop, 'run_iter', killed)
    train(tmp_path, train_dataloader__num_workers=1, train_dataloader__prefetch_factor=1)
    assert (tmp_path / 'iter_6.pth').exists()
    assert 'DATA WORKER DIED' in ''.join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='finds processes in /proc')
def test_workers_end_with_the_process_that_they_load_for(tmp_path):
    options = ['train_dataloader.num_workers=1', 'train_cfg.max_iters=100000', 'default_hooks.samples.interval=100000']
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', *options]
    mark = f'PIXNERD_TEST_MARK={tmp_path}'
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = start_tool(*command, environment=dict([mark.split('=')]), **silent)
    while not list(tmp_path.glob('*/vis_data/scalars.json')):
        assert process.poll() is None
        time.sleep(0.05)
    assert len(marked(mark)) >= 3, 'the program, a server and a worker'
    process.kill()
    process.wait()
    for _ in range(600):
        if not marked(mark):
            return
        time.sleep(0.1)
    pytest.fail(f'{len(marked(mark))} processes outlive it')


def marked(mark: str) -> list[str]:
    """The processes with an entry in their environment."""
    found = []
    for pid in filter(str.isdecimal, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/environ', 'rb') as environment:
                if mark.encode() in environment.read().split(b'\0'):
                    found.append(pid)
        except OSError:
            continue
    return found

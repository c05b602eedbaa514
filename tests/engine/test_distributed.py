"""Training on two processes: exact on its own, and when one of them fails, hangs or is asked to stop."""

import signal
import subprocess
import sys
import time

import pytest

from pixnerd_plugin.engine.logs import read_scalars
from pixnerd_plugin.engine.preemption import EXIT_REQUEUE
from tests.training import (
    CONFIG,
    ROOT,
    assert_same_training_state,
    free_port,
    load,
    logged,
    run_tool,
    signal_hook,
    start_tool,
)


def config_with(folder, **hook):
    """The tiny config with a hook that sends a signal, not in the work folder, where mmengine would write over it."""
    path = folder / 'configs' / 'signal.py'
    path.parent.mkdir()
    path.write_text(f'_base_ = {str(CONFIG)!r}\ncustom_hooks = {signal_hook(**hook)!r}\n')
    return path


def dist(work_dir, *options, config=CONFIG, **environment):
    """Command and environment of a run of two processes."""
    command = [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir, *options]
    return command, dict(PORT=free_port(), **environment)


@pytest.fixture(scope='module')
def whole_pair(tmp_path_factory):
    """A run without faults on two processes."""
    work_dir = tmp_path_factory.mktemp('pair')
    command, environment = dist(work_dir)
    done = run_tool(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir


@pytest.mark.slow
def test_two_processes_draw_different_noise_and_resume_exactly(tmp_path, whole_pair):
    command, environment = dist(tmp_path, '--resume', whole_pair / 'iter_4.pth')
    done = run_tool(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training_state(load(whole_pair / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
    noise = [(whole_pair / f'noise_{rank}.txt').read_text().splitlines() for rank in range(2)]
    resumed = [(tmp_path / f'noise_{rank}.txt').read_text().splitlines() for rank in range(2)]
    assert [lines[4:] for lines in noise] == resumed
    draws = [line.split()[1] for lines in noise for line in lines]
    assert len(set(draws)) == len(draws) == 12


@pytest.mark.slow
def test_two_processes_validate_as_one(tmp_path):
    config = tmp_path / 'configs' / 'held_out.py'
    config.parent.mkdir()
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='DigitsDataset', size=16, split='test', indices=21, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    metrics = [dict(type='LossByTime'), dict(type='FrechetDistance', feature_extractor=dict(type='ThreeFeatures'))]
    config.write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f"custom_imports = dict(imports=['pixnerd_plugin', 'record_noise', 'tests.engine.test_validation'])\n"
        f'val_dataloader = {loader!r}\nval_evaluator = {metrics!r}\n'
        "val_cfg = dict(type='ValidationLoop')\ntrain_cfg = dict(max_iters=1)\n"
        'optim_wrapper = dict(optimizer=dict(lr=0.0))\ncustom_hooks = [dict(type="BestCheckpointHook")]\n'
    )
    command, environment = dist(tmp_path / 'two', config=config)
    alone = run_tool(sys.executable, 'tools/train.py', config, '--work-dir', tmp_path / 'one')
    together = run_tool(*command, **environment)
    found = []
    for done, name in ((alone, 'one'), (together, 'two')):
        assert done.returncode == 0, done.stderr[-3000:]
        (entry,) = read_scalars(tmp_path / name).values()
        found.append({key: value for key, value in entry.items() if key.startswith('val/')})
        assert (tmp_path / name / 'best.pth').is_file()
    assert found[0].keys() == found[1].keys()
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.slow
def test_one_rank_that_dies_costs_a_restart_and_nothing_else(tmp_path, whole_pair):
    config = config_with(tmp_path, at=4, number='SIGKILL', rank=1, once=str(tmp_path / 'killed'))
    command, environment = dist(tmp_path, config=config, MAX_RESTARTS='1')
    done = run_tool(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'killed').exists()
    assert_same_training_state(load(whole_pair / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
    assert logged(tmp_path) == logged(whole_pair)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_on_all_ranks_and_asks_for_a_requeue(tmp_path, whole_pair):
    endless = ['--cfg-options', 'train_cfg.max_iters=100000', 'default_hooks.checkpoint.interval=100000']
    command, environment = dist(tmp_path, *endless)
    process = start_tool(*command, environment=environment, stderr=subprocess.PIPE)
    while not list(tmp_path.glob('*/vis_data/scalars.json')):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == EXIT_REQUEUE, errors[-3000:]
    (saved,) = tmp_path.glob('iter_*.pth')
    iteration = load(saved)['meta']['iter']
    assert saved.name == f'iter_{iteration}.pth'
    assert [entry['step'] for entry in logged(tmp_path)] == list(range(1, iteration + 1))
    same = {entry['step']: entry['loss'] for entry in logged(whole_pair)}
    assert all(entry['loss'] == same[entry['step']] for entry in logged(tmp_path)[:6])


@pytest.mark.slow
def test_a_fault_on_one_rank_is_skipped_and_counted_on_all(tmp_path):
    loss = [f'model.loss.{key}={value}' for key, value in dict(type='FaultyLoss', nan_at='[2]', rank=1).items()]
    command, environment = dist(tmp_path, '--cfg-options', *loss)
    done = run_tool(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    final = load(tmp_path / 'iter_6.pth')
    assert final['optimizer']['skipped'] == dict(in_a_row=0, steps=1)
    assert all(tensor.isfinite().all() for tensor in final['state_dict'].values())
    assert (done.stdout + done.stderr).count('STEP LEFT OUT') >= 2, 'one line from each rank'


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_within_the_timeout(tmp_path):
    stopped = tmp_path / 'stopped'
    config = config_with(tmp_path, at=2, number='SIGSTOP', rank=1, once=str(stopped))
    options = ['--cfg-options', 'env_cfg.dist_cfg.timeout=8']
    command = [sys.executable, 'tools/train.py', config, '--work-dir', tmp_path, '--launcher', 'pytorch', *options]
    shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ranks = [
        start_tool(*command, environment=shared | dict(RANK=str(rank), LOCAL_RANK=str(rank)), **silent)
        for rank in range(2)
    ]
    try:
        while not stopped.exists():
            assert ranks[1].poll() is None
            time.sleep(0.05)
        # Without the timeout it would wait for ever.
        assert ranks[0].wait(timeout=120) != 0
        assert ranks[1].poll() is None
    finally:
        for process in ranks:
            process.kill()
            process.wait()

"""Training under faults: what fails is survived, said, or refused, and what goes on is what it would have been."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pixnerd_plugin.preemption import EXIT_REQUEUE
from tests.training import CONFIG, ENVIRONMENT, ROOT, assert_same_training_state, load, logged, run_tool, train

FAULTY = dict(type='FaultyLoss', align_layer=1, dim=16, projector_dim=16, teacher_dim=16)


def custom(**hook):
    return [dict(type='SignalHook', **hook)]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run without faults."""
    work_dir = tmp_path_factory.mktemp('whole')
    train(work_dir)
    return work_dir


def test_sigterm_saves_between_two_steps_and_the_rest_follows_exactly(tmp_path, whole):
    runner = train(tmp_path, custom_hooks=custom(at=2, number='SIGTERM'))
    assert runner.train_loop.preempted
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_3.pth')
    assert load(tmp_path / 'iter_3.pth')['meta']['iter'] == 3
    time.sleep(1)  # names of logs have whole seconds
    assert not train(tmp_path, resume=True).train_loop.preempted
    assert_same_training_state(load(whole / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
    assert logged(tmp_path) == logged(whole)


def test_under_accumulation_sigterm_waits_for_the_end_of_the_step(tmp_path):
    train(tmp_path, optim_wrapper__accumulative_counts=2, custom_hooks=custom(at=2, number='SIGTERM'))
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')


def test_dead_data_workers_are_replaced_without_a_trace_in_the_result(tmp_path, whole, capfd):
    options = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
    hooks = custom(at=2, number='SIGKILL', worker=True) + custom(at=4, number='SIGKILL', worker=True)
    train(tmp_path, custom_hooks=hooks, **options)
    assert_same_training_state(load(whole / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
    output = ''.join(capfd.readouterr())
    assert output.count('DATA WORKER DIED') >= 1


def test_a_loss_that_is_not_a_number_costs_one_step(tmp_path, capfd):
    train(tmp_path, model__loss=FAULTY | dict(nan_at=[3]))
    final = load(tmp_path / 'iter_6.pth')
    assert all(tensor.isfinite().all() for tensor in final['state_dict'].values())
    assert final['optimizer']['skipped'] == dict(in_a_row=0, steps=1)
    assert {int(state['step']) for state in final['optimizer']['state'].values()} == {5}
    assert [entry['skipped_steps'] for entry in logged(tmp_path)] == [0, 0, 1, 1, 1, 1]
    assert 'STEP LEFT OUT' in ''.join(capfd.readouterr())


def test_too_many_in_a_row_stop_training_and_save_the_batch(tmp_path):
    loss = FAULTY | dict(teacher=dict(type='FaultyTeacher', nan_at=[2, 3, 4, 5, 6]))
    with pytest.raises(FloatingPointError, match=r'more than 2 steps in a row.*not finite: loss_repa of 1 pictures'):
        train(tmp_path, model__loss=loss, optim_wrapper__max_skipped=2)
    saved = load(tmp_path / 'nonfinite_iter_4_rank_0.pth')
    assert [batch['iteration'] for batch in saved['recent']] == [2, 3]
    assert saved['recent'][-1]['batch']['inputs'].shape == (4, 3, 16, 16)
    assert saved['per_picture']['loss_repa'].isnan().sum() == 1
    assert load(tmp_path / 'iter_2.pth')['state_dict']['backbone.patch_embed.weight'].isfinite().all()


def test_a_not_a_number_from_the_teacher_never_reaches_the_weights(tmp_path):
    train(tmp_path, model__loss=FAULTY | dict(teacher=dict(type='FaultyTeacher', nan_at=[2, 5])))
    final = load(tmp_path / 'iter_6.pth')
    assert final['optimizer']['skipped']['steps'] == 2
    for key in ('state_dict', 'ema_state_dict'):
        assert all(tensor.isfinite().all() for tensor in final[key].values())


def config_with(folder, **hook):
    """The tiny config with a hook that sends a signal, not in the work folder, where mmengine would write over it."""
    path = folder / 'configs' / 'signal.py'
    path.parent.mkdir()
    path.write_text(f'_base_ = {str(CONFIG)!r}\ncustom_hooks = {custom(**hook)!r}\n')
    return path


def dist(work_dir, *options, config=CONFIG, **environment):
    """Command and environment of a run of two processes."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir, *options]
    return [str(part) for part in command], dict(PORT=str(port), **environment)


@pytest.fixture(scope='module')
def whole_pair(tmp_path_factory):
    """A run without faults on two processes."""
    work_dir = tmp_path_factory.mktemp('pair')
    command, environment = dist(work_dir)
    done = run_tool(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir


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
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True)
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
    config = config_with(tmp_path, at=2, number='SIGSTOP', rank=1)
    options = ['--cfg-options', 'env_cfg.dist_cfg.timeout=15']
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, 'tools/train.py', config, '--work-dir', tmp_path, '--launcher', 'pytorch']
    shared = ENVIRONMENT | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
    ranks = [
        subprocess.Popen(
            [str(part) for part in [*command, *options]],
            cwd=ROOT,
            env=shared | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        while Path(f'/proc/{ranks[1].pid}/stat').read_text().rsplit(') ')[1][0] != 'T':
            assert ranks[1].poll() is None
            time.sleep(0.05)
        stopped = time.monotonic()
        assert ranks[0].wait(timeout=120) != 0
        assert time.monotonic() - stopped < 100
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_a_checkpoint_with_a_flipped_bit_gives_way_to_the_one_before(tmp_path, whole, capsys):
    for path in (*whole.glob('iter_*.pth'), whole / 'last_checkpoint'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / 'iter_6.pth').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'iter_6.pth').write_bytes(data)
    train(tmp_path, resume=True)
    assert 'CHECKPOINT DAMAGED' in capsys.readouterr().err
    assert_same_training_state(load(whole / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))


def test_nothing_in_a_checkpoint_needs_more_than_weights_only(whole):
    checkpoint = torch.load(whole / 'iter_6.pth', weights_only=True)
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta'} == set(checkpoint)
    assert {'config', 'versions', 'data', 'processes'} == set(checkpoint['meta']['depends_on'])

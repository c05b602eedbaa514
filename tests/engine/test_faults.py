"""Training under faults: what fails is survived, said, or refused, and what goes on is what it would have been."""

import signal
import subprocess
import sys

import pytest
import torch

from pixnerd_plugin.engine.resume import find_checkpoint
from tests.training import CONFIG, assert_same_training_state, load, logged, signal_hook, start_tool, train

FAULTY = dict(type='FaultyLoss', align_layer=1, dim=16, projector_dim=16, teacher_dim=16)


def test_sigterm_saves_between_two_steps_and_the_rest_follows_exactly(tmp_path, uninterrupted):
    runner = train(tmp_path, custom_hooks=signal_hook(at=2, number='SIGTERM'))
    assert runner.train_loop.preempted
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_3.pth')
    assert load(tmp_path / 'iter_3.pth')['meta']['iter'] == 3
    assert not train(tmp_path, resume=True).train_loop.preempted
    assert_same_training_state(load(uninterrupted / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
    assert logged(tmp_path) == logged(uninterrupted)


def test_under_accumulation_sigterm_waits_for_the_end_of_the_step(tmp_path):
    train(tmp_path, optim_wrapper__accumulative_counts=2, custom_hooks=signal_hook(at=2, number='SIGTERM'))
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')


def test_dead_data_workers_are_replaced_without_a_trace_in_the_result(tmp_path, uninterrupted, capfd):
    # Each is one batch ahead, so that the first one is missed before training ends.
    options = dict(
        train_dataloader__num_workers=2, train_dataloader__persistent_workers=True, train_dataloader__prefetch_factor=1
    )
    hooks = signal_hook(at=1, number='SIGKILL', worker=True) + signal_hook(at=4, number='SIGKILL', worker=True)
    train(tmp_path, custom_hooks=hooks, **options)
    assert_same_training_state(load(uninterrupted / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
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
    assert saved['per_image']['loss_repa'].isnan().sum() == 1
    assert load(tmp_path / 'iter_2.pth')['state_dict']['backbone.patch_embed.weight'].isfinite().all()


def test_a_not_a_number_from_the_teacher_never_reaches_the_weights(tmp_path):
    train(tmp_path, model__loss=FAULTY | dict(teacher=dict(type='FaultyTeacher', nan_at=[2, 5])))
    final = load(tmp_path / 'iter_6.pth')
    assert final['optimizer']['skipped']['steps'] == 2
    for key in ('state_dict', 'ema_state_dict'):
        assert all(tensor.isfinite().all() for tensor in final[key].values())


def test_a_checkpoint_with_a_flipped_bit_gives_way_to_the_one_before(tmp_path, uninterrupted, capsys):
    for path in (*uninterrupted.glob('iter_*.pth'), uninterrupted / 'last_checkpoint'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / 'iter_6.pth').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'iter_6.pth').write_bytes(data)
    train(tmp_path, resume=True)
    assert 'CHECKPOINT DAMAGED' in capsys.readouterr().err
    assert_same_training_state(load(uninterrupted / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_the_last_whole_one_is_used(tmp_path, uninterrupted):
    killed = {}
    for moment in ('half', 'unnamed', 'unannounced'):
        config = tmp_path / f'{moment}.py'
        hook = dict(type='KilledWhileSaving', name='iter_4.pth', moment=moment)
        config.write_text(f'_base_ = {str(CONFIG)!r}\ncustom_hooks = [{hook!r}]\n')
        command = [sys.executable, 'tools/train.py', config, '--work-dir', tmp_path / moment]
        killed[moment] = start_tool(*command, stdout=subprocess.DEVNULL)
    for moment, process in killed.items():
        work_dir = tmp_path / moment
        assert process.wait(timeout=200) == -signal.SIGKILL
        assert (work_dir / 'iter_4.pth').exists() == (moment == 'unannounced')
        assert find_checkpoint(work_dir).name == 'iter_2.pth'
        train(work_dir, resume=True)
        assert_same_training_state(load(uninterrupted / 'iter_6.pth'), load(work_dir / 'iter_6.pth'))
        assert logged(work_dir) == logged(uninterrupted)
        assert not list(work_dir.glob('.tmp-*'))


def test_nothing_in_a_checkpoint_needs_more_than_weights_only(uninterrupted):
    checkpoint = torch.load(uninterrupted / 'iter_6.pth', weights_only=True)
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta'} == set(checkpoint)
    assert {'config', 'versions', 'data', 'processes'} == set(checkpoint['meta']['depends_on'])


def test_a_run_that_went_back_to_an_earlier_checkpoint_stays_there(tmp_path):
    """A kill before its first save does not bring back the later checkpoints that it left."""
    train(tmp_path, stop_at=4)
    assert find_checkpoint(tmp_path).name == 'iter_4.pth'
    train(tmp_path, resume=tmp_path / 'iter_2.pth', stop_at=3)
    assert find_checkpoint(tmp_path).name == 'iter_2.pth'

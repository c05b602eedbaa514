import shutil

import pytest
import torch

from pixnerd_plugin.engine.schedule import settings
from tests.training import load, logged, train

CHANGED = dict(
    optim_wrapper__optimizer__lr=3e-2,
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
        dict(type='CosineAnnealingLR', eta_min=1e-3, by_epoch=False, begin=3, end=9),
    ],
    train_cfg__max_iters=9,
)


def test_a_new_schedule_is_taken_as_if_it_had_been_there_from_the_beginning(tmp_path, uninterrupted, capsys):
    resumed, anew = tmp_path / 'resumed', tmp_path / 'anew'
    resumed.mkdir()
    shutil.copy(uninterrupted / 'iter_4.pth', resumed)
    with pytest.raises(ValueError, match=r'optimizer\.lr was 0\.01 and is 0\.03.*take it with --reset'):
        train(resumed, resume=True, resume_anyway=True, **CHANGED)
    train(resumed, resume=True, reset_schedule=True, **CHANGED)
    train(anew, **CHANGED)
    rates = [{entry['step']: entry['lr'] for entry in logged(folder)} for folder in (resumed, anew)]
    assert rates[0] == {step: rates[1][step] for step in range(5, 10)}
    final, start = load(resumed / 'iter_9.pth'), load(uninterrupted / 'iter_4.pth')
    assert final['param_schedulers'] == load(anew / 'iter_9.pth')['param_schedulers']
    assert {int(state['step']) for state in final['optimizer']['state'].values()} == {9}
    assert (int(start['ema_state_dict']['steps']), int(final['ema_state_dict']['steps'])) == (4, 9)
    # What is recorded is what the optimiser uses, and the next start with the same config needs no word.
    config = final['meta']['depends_on']['config']
    assert (config['optim_wrapper.optimizer.lr'], config['train_cfg.max_iters']) == (3e-2, 9)
    assert settings(final['optimizer'])[0]['lr'] == 3e-2
    written = (resumed / 'iter_9.pth').read_bytes()
    capsys.readouterr()
    train(resumed, resume=True, **CHANGED)
    assert 'This run is finished: 9 of 9 iterations' in ''.join(capsys.readouterr())
    assert (resumed / 'iter_9.pth').read_bytes() == written


def test_reset_without_a_change_changes_nothing(tmp_path, uninterrupted):
    shutil.copy(uninterrupted / 'iter_4.pth', tmp_path)
    train(tmp_path, resume=True, reset_schedule=True)
    one, other = (load(folder / 'iter_6.pth') for folder in (uninterrupted, tmp_path))
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']
    assert one['param_schedulers'] == other['param_schedulers']
    assert all(torch.equal(one['state_dict'][name], other['state_dict'][name]) for name in one['state_dict'])


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch before 2.9 has no Muon')
def test_muon_and_adamw_in_one_get_a_new_rate(tmp_path):
    muon = dict(_delete_=True, type='MuonAdamW', lr=1e-2)
    train(tmp_path, stop_at=2, optim_wrapper__constructor='MuonConstructor', optim_wrapper__optimizer=muon)
    options = dict(optim_wrapper__constructor='MuonConstructor', optim_wrapper__optimizer=muon | dict(lr=4e-2))
    train(tmp_path, resume=True, reset_schedule=True, **options)
    before, after = (load(tmp_path / f'iter_{step}.pth')['optimizer'] for step in (2, 6))
    assert [{group['lr'] for group in settings(state)} for state in (before, after)] == [{1e-2}, {4e-2}]
    assert before['state'].keys() == after['state'].keys()


def test_a_schedule_can_be_given_up(tmp_path, uninterrupted):
    shutil.copy(uninterrupted / 'iter_4.pth', tmp_path)
    train(tmp_path, resume=True, reset_schedule=True, param_scheduler=None, optim_wrapper__optimizer__lr=2e-3)
    assert [entry['lr'] for entry in logged(tmp_path)] == [2e-3, 2e-3]


def test_what_the_optimiser_really_uses_is_compared_too(tmp_path, uninterrupted):
    """A record that says what the optimiser does not do, as older versions wrote after --force."""
    checkpoint = load(uninterrupted / 'iter_4.pth')
    checkpoint['optimizer']['param_groups'][0]['initial_lr'] = 1.0
    torch.save(checkpoint, tmp_path / 'iter_4.pth')
    with pytest.raises(ValueError, match=r'optimiser\.0\.lr was 1\.0 and is 0\.01'):
        train(tmp_path, resume=True)

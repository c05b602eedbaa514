from types import SimpleNamespace

import pytest
from mmengine.config import Config

from pixnerd_plugin.engine.hooks.provenance import ProvenanceHook, dependencies, differences


class Data:
    fingerprint = 'abc'

    def __len__(self):
        return 10


class Loop:
    def __init__(self):
        self.resumed = None

    def visits_after(self, iteration):
        return 8 * iteration

    def resume_visits(self, iteration, visits):
        self.resumed = (iteration, visits)


def runner(fingerprint='abc', force=False, reset=False, **changes):
    config = Config(
        dict(
            model=dict(
                backbone=dict(dim=16), loss=dict(teacher='here/dinov2'), sampler=dict(num_steps=25), compile=False
            ),
            optim_wrapper=dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.99))),
            train_dataloader=dict(batch_size=4, num_workers=0, dataset=dict(data_root='here/data')),
            default_hooks=dict(ema=dict(decay=0.5)),
            param_scheduler=[dict(type='LinearLR', end=10), dict(type='CosineAnnealingLR', begin=10, end=90)],
            train_cfg=dict(type='ResumableTrainLoop', max_iters=90),
            randomness=dict(seed=0),
            resume_anyway=force,
            reset_schedule=reset,
        )
    )
    config.merge_from_dict(changes)
    data = Data()
    data.fingerprint = fingerprint
    loader = SimpleNamespace(dataset=data)
    return SimpleNamespace(cfg=config, train_dataloader=loader, train_loop=Loop(), _resume=True, message_hub=None)


def saved():
    checkpoint = dict(meta=dict(iter=3))
    ProvenanceHook().before_save_checkpoint(runner(), checkpoint)
    return checkpoint


def test_the_same_run_resumes_wherever_its_files_are_and_however_fast_it_goes():
    changes = {
        'model.loss.teacher': '/elsewhere/dinov2',
        'train_dataloader.dataset.data_root': '/elsewhere/data2',
        'train_dataloader.num_workers': 4,
        'model.compile': True,
        'model.sampler.num_steps': 4,
        'train_cfg.val_interval': 10,
    }
    moved = runner(**changes)
    ProvenanceHook().after_load_checkpoint(moved, saved())
    assert moved.train_loop.resumed == (3, 24)


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({'model.backbone.dim': 32}, 'model.backbone.dim was 16 and is 32'),
        ({'optim_wrapper.clip_grad': dict(max_norm=1.0)}, "optim_wrapper.clip_grad.max_norm was 'nothing' and is 1.0"),
        ({'randomness.seed': 1}, 'randomness.seed was 0 and is 1'),
        ({'default_hooks.ema.decay': 0.9}, 'ema.decay was 0.5 and is 0.9'),
        ({'fingerprint': 'xyz'}, "data.fingerprint was 'abc' and is 'xyz'"),
    ],
)
def test_what_changed_is_named_and_refused_unless_forced(change, line, capsys):
    with pytest.raises(ValueError, match='--force') as refused:
        ProvenanceHook().after_load_checkpoint(runner(**change), saved())
    assert line in str(refused.value)
    assert '\n' not in str(refused.value)
    ProvenanceHook().after_load_checkpoint(runner(**change, force=True), saved())


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({'optim_wrapper.optimizer.lr': 1.0}, 'optim_wrapper.optimizer.lr was 0.001 and is 1.0'),
        ({'param_scheduler.1.end': 80}, 'param_scheduler.1.end was 90 and is 80'),
        ({'train_cfg.max_iters': 80}, 'train_cfg.max_iters was 90 and is 80'),
        ({'auto_scale_lr': dict(enable=True)}, "auto_scale_lr was None and is 'nothing'"),
    ],
)
def test_another_schedule_is_refused_by_name_unless_it_is_taken(change, line):
    for force in (False, True):
        with pytest.raises(ValueError, match=r'take it with --reset-schedule$') as refused:
            ProvenanceHook().after_load_checkpoint(runner(**change, force=force), saved())
        assert line in str(refused.value)
    ProvenanceHook().after_load_checkpoint(runner(**change, reset=True), saved())
    with pytest.raises(ValueError, match=r'dim was 16 and is 32\. Undo that, or resume anyway with --force$'):
        ProvenanceHook().after_load_checkpoint(runner(**change, **{'model.backbone.dim': 32}, reset=True), saved())


def test_another_optimiser_is_refused_whatever_is_given():
    other = runner(**{'optim_wrapper.optimizer.type': 'SGD'}, force=True, reset=True)
    with pytest.raises(ValueError, match='cannot go on from the moments'):
        ProvenanceHook().after_load_checkpoint(other, saved())


def test_what_an_older_version_did_not_record_is_not_compared():
    checkpoint = saved()
    config = checkpoint['meta']['depends_on']['config']
    for key in [key for key in config if key.startswith(('train_cfg', 'param_scheduler'))]:
        del config[key]
    config |= {'model.sampler.num_steps': 50, 'param_scheduler': [dict(end=10, type='LinearLR')]}
    with pytest.raises(ValueError, match=r'param_scheduler\.1\.begin was') as refused:
        ProvenanceHook().after_load_checkpoint(runner(), checkpoint)
    assert 'sampler.num' not in str(refused.value)
    assert 'train_cfg' not in str(refused.value)
    assert 'param_scheduler.0' not in str(refused.value)


def test_other_versions_and_other_numbers_of_processes_are_differences():
    then = dependencies(runner())
    now = dependencies(runner())
    assert not differences(then, now)
    now['versions'] = dict(now['versions'], torch='1.0')
    now['processes'] = 16
    assert list(differences(then, now)) == ['processes', 'versions.torch']

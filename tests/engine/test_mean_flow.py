"""MeanFlowLoss under mmengine's Runner: distillation, bf16, accumulation, EMA, resuming, several processes."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from pixnerd_plugin import load_backbone, load_pipeline
from pixnerd_plugin.checkpoints import load_into
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.engine.resume import load_initial_weights
from pixnerd_plugin.registry import MODELS
from tests.training import CONFIG, assert_same_training_state, free_port, load, run_tool, train

LOSS = dict(
    type='MeanFlowLoss',
    guidance_scale=2.0,
    guidance_interval=(0.0, 0.6),
    equal_share=0.25,
    end_share=0.25,
    whole_share=0.25,
)


def settings(teacher=None):
    loss = (
        LOSS if teacher is None else {**LOSS, 'velocity_teacher': dict(type='FrozenBackbone', checkpoint=str(teacher))}
    )
    return dict(
        model__loss=loss,
        model__backbone__step_end=True,
        model__backbone__checkpoint=True,
        model__sampler=dict(_delete_=True, type='MeanFlowSampler', num_steps=2),
        optim_wrapper=dict(type='Bf16OptimWrapper', accumulative_counts=2),
    )


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    train(folder, train_cfg__max_iters=2)
    return folder / 'iter_2.pth'


def test_a_network_is_distilled_resumed_exactly_and_drawn_from_in_one_step(tmp_path, teacher):
    given = dict(settings(teacher), load_from=str(teacher))
    whole = train(tmp_path / 'whole', **given)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'again')
    (tmp_path / 'again' / 'iter_6.pth').unlink()
    (tmp_path / 'again' / 'last_checkpoint').write_text('iter_4.pth')
    train(tmp_path / 'again', resume=True, **given)
    last = load(tmp_path / 'whole' / 'iter_6.pth')
    assert_same_training_state(last, load(tmp_path / 'again' / 'iter_6.pth'))
    assert not any('velocity_teacher' in name for name in last['state_dict'])
    assert any('step_embed' in name for name in last['ema_state_dict'])
    assert whole.message_hub.get_scalar('train/error').current() > 0

    pipe = load_pipeline(tmp_path / 'whole' / 'iter_6.pth')
    assert pipe.sampler.config() == dict(type='MeanFlowSampler', num_steps=2, timeshift=1.0, noise_limit=0.0)
    (image,) = pipe(labels=[3], num_steps=1)
    assert image.size == (16, 16)


def test_training_starts_from_the_teacher_and_a_new_embedding_of_the_end(teacher):
    net = MODELS.build({**load_backbone(teacher).architecture(), 'step_end': True})
    model = SimpleNamespace(backbone=net, loss=None)
    load_initial_weights(model, teacher)
    start = load_backbone(teacher).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items() if name in start)
    assert not net.step_embed.fc2.weight.any()
    # To draw from, a network must be whole.
    with pytest.raises(ValueError, match='does not fit the backbone of the config'):
        load_into(net, teacher)


@pytest.mark.slow
def test_two_processes_keep_one_network(tmp_path):
    config = load_config(CONFIG, {name.replace('__', '.'): value for name, value in settings().items()})
    config.dump(tmp_path / 'config.py')
    done = run_tool('tools/dist_train.sh', tmp_path / 'config.py', '2', '--work-dir', tmp_path, PORT=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(tensor.isfinite().all() for tensor in load(tmp_path / 'iter_6.pth')['state_dict'].values())

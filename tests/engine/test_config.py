import sys
from pathlib import Path

import pytest

from pixnerd_plugin.engine.config import hide_broken_torchvision, load_config
from pixnerd_plugin.engine.config_check import accepted_arguments
from tests.training import DATA, ROOT

DIGITS = ROOT / 'mm_configs/pixnerd_digits.py'


def test_a_torchvision_that_fails_to_import_counts_as_absent(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    monkeypatch.delitem(sys.modules, 'torchvision')
    hide_broken_torchvision()
    with pytest.raises(ModuleNotFoundError):
        __import__('torchvision')
    hide_broken_torchvision()


def test_defaults_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('PIXNERD_TINY_QWEN3', raising=False)
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / 'mm_configs/pixnerd_t2i_tiny.py')
    assert Path(config.model.conditioner.model).resolve() == DATA / 'qwen3_tiny'
    monkeypatch.setenv('PIXNERD_TINY_QWEN3', '/mine')
    assert load_config(ROOT / 'mm_configs/pixnerd_t2i_tiny.py').model.conditioner.model == '/mine'


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        ('modle.backbone.depth=2', 'modle.backbone.depth: no config has modle; did you mean model?'),
        ('load_form=a.pth', 'load_form: no config has load_form; did you mean load_from?'),
        ('default_hooks.chekpoint.interval=4', 'default_hooks has no chekpoint; did you mean checkpoint?'),
        ('custom_hooks.3.interval=2', 'custom_hooks.3.interval: custom_hooks has 1 entries, and no 3'),
        ('model.backbone.dept=3', 'model.backbone.dept: PixNerdDiT has no argument dept; did you mean depth?'),
        ('model.backbone.head.widht=3', 'NeuralFieldHead has no argument widht; did you mean width?'),
        ('model.sampler.num_step=3', 'AdamsFlowSampler has no argument num_step; did you mean num_steps?'),
        ('optim_wrapper.optimizer.type=Adamm', 'optim_wrapper.optimizer.type=Adamm is not known; did you mean Adam'),
        ('optim_wrapper.optimizer.lrr=1', 'AdamW has no argument lrr; did you mean lr?'),
        ('optim_wrapper.acumulative_counts=2', 'did you mean accumulative_counts?'),
        ('custom_hooks.0.intervl=2', 'SampleGridHook has no argument intervl; did you mean interval?'),
        ('train_cfg.max_iter=4', 'ResumableTrainLoop has no argument max_iter; did you mean max_iters?'),
        ('train_dataloader.batchsize=3', 'train_dataloader.batchsize is not known; did you mean batch_size?'),
        ('train_dataloader.dataset.data_rot=4', 'DigitsDataset has no argument data_rot; did you mean data_root?'),
        ('train_dataloader.dataset.pipeline.0.type=LoadRBG', 'did you mean LoadRGB?'),
        ('train_dataloader.sampler.shufle=True', 'ResumableSampler has no argument shufle; did you mean shuffle?'),
        ('param_scheduler.0.ende=3', 'LinearLR has no argument ende; did you mean end?'),
        ('visualizer.vis_backends.0.type=Wandb', 'did you mean WandbVisBackend?'),
        ('randomness.sead=3', 'randomness.sead is not known; did you mean seed?'),
        ('model.loss.teacher.type=DINOv2Teacher', "teacher={'type': 'DINOv2Teacher'}"),
        ('max_iters', 'max_iters: not KEY=VALUE'),
    ],
)
def test_an_option_that_nothing_reads_is_refused_with_the_nearest(option, line):
    with pytest.raises(ValueError, match=r'^--cfg-options') as caught:
        load_config(DIGITS, [option])
    assert line in str(caught.value)
    assert '\n' not in str(caught.value)


def test_the_same_in_a_file_names_the_file(tmp_path):
    path = tmp_path / 'mine.py'
    for wrong, line in (
        ('model = dict(backbone=dict(dept=3))', 'model.backbone.dept: PixNerdDiT has no argument dept; did you mean'),
        ("optim_wrapper = dict(optimizer=dict(type='Adamm'))", 'optim_wrapper.optimizer.type=Adamm is not known'),
        ('randomness = dict(sead=1)', 'randomness.sead is not known; did you mean seed?'),
    ):
        path.write_text(f'_base_ = {str(DIGITS)!r}\n{wrong}\n')
        with pytest.raises(ValueError, match=r'mine\.py: ') as caught:
            load_config(path)
        assert line in str(caught.value)


def test_what_parts_accept_is_accepted():
    options = [
        'optim_wrapper.clip_grad.max_norm=1',  # the wrapper takes it, though the config has none
        'optim_wrapper.paramwise_cfg.norm_decay_mult=0',
        'randomness.deterministic=True',
        'env_cfg.cudnn_benchmark=True',
        'image_size=64',
        'work_dir=elsewhere',
        'custom_hooks.0.priority=LOW',
        'train_dataloader.dataset.max_damaged=0.5',  # of the base class, through **kwargs
        'train_dataloader.prefetch_factor=2',
        'log_processor.num_digits=3',  # of mmengine's class
        'model.backbone.dtype=bfloat16',
    ]
    config = load_config(DIGITS, options)
    assert config.optim_wrapper.clip_grad.max_norm == 1
    assert config.image_size == 64
    assert load_config(DIGITS, {'train_cfg.max_iters': 3}).train_cfg.max_iters == 3


def test_the_arguments_of_a_class_are_followed_as_far_as_they_go():
    class Base:
        def __init__(self, a, b=1):
            self.a = a, b

    class PassesOn(Base):
        def __init__(self, c, **kwargs):
            super().__init__(c, **kwargs)

    class Keeps(Base):
        def __init__(self, c, **kwargs):
            super().__init__(c)
            self.kwargs = kwargs

    assert accepted_arguments(Base) == {'a', 'b'}
    assert accepted_arguments(PassesOn) == {'a', 'b', 'c'}
    assert accepted_arguments(Keeps) is None
    assert accepted_arguments(sorted) is None
    assert accepted_arguments(lambda x, y=1: None) == {'x', 'y'}


def test_parts_are_given_on_the_command_line_as_in_a_config():
    config = load_config(
        'mm_configs/pixnerd_digits.py',
        [
            "model.backbone.head=dict(type='DeCoHead', width=32, depth=3)",
            "model.loss.terms=[dict(type='FrequencyLoss', weight=1.0, quality=85)]",
            "model.sampler.guidance={'type': CFGZeroStar, 'zero_steps': 1}",
            'model.sampler.guidance_interval=(0.1, 0.5)',
        ],
    )
    assert config.model.backbone.head == dict(type='DeCoHead', width=32, depth=3)
    assert config.model.loss.terms == [dict(type='FrequencyLoss', weight=1.0, quality=85)]
    assert config.model.sampler.guidance == dict(type='CFGZeroStar', zero_steps=1)
    assert tuple(config.model.sampler.guidance_interval) == (0.1, 0.5)


@pytest.mark.parametrize('value', ["dict(type='A'", 'dict(open("x"))', 'dict(**{})', '{**{}}', 'dict(a=print())'])
def test_what_is_no_value_is_refused_in_one_line(value):
    with pytest.raises(ValueError, match=r'--cfg-options model.lora='):
        load_config('mm_configs/pixnerd_digits.py', [f'model.lora={value}'])

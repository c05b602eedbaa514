"""Every config reads, stays small and builds the network it says."""

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.evaluation.generate import image_size_of
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore
from pixnerd_plugin.registry import MODELS

ROOT = Path(__file__).parent.parent
LEAVES = sorted((ROOT / 'mm_configs').glob('*.py'))
PARAMETERS = {
    'pixnerd_l16': 452_113_795,
    'pixnerd_xl16': 700_589_219,
    'pixnerd_xl16_512': 700_589_219,
    'pixnerd_xl16_finetune': 700_589_219,
    'pixnerd_xl16_meanflow': 702_213_539,
    'pixnerd_xxl16_t2i_256': 1_171_518_019,
    'pixnerd_xxl16_t2i_256_precomputed': 1_171_518_019,
    'pixnerd_xxl16_t2i_finetune': 1_171_518_019,
    'pixnerd_xxl16_t2i_256_shapes': 1_171_518_019,
    'pixnerd_xxl16_t2i_finetune_shapes': 1_171_518_019,
    'pixnerd_xxl16_t2i_512': 1_171_518_019,
    'pixnerd_xxl16_t2i_512_sft': 1_171_518_019,
    'deco_l16': 426_938_019,
    'deco_xl16': 682_282_851,
    'deco_xl16_512': 682_282_851,
    'deco_xxl16_t2i_256': 1_133_759_395,
    'deco_xxl16_t2i_512': 1_133_759_395,
    'deco_xxl16_t2i_512_sft': 1_133_759_395,
}

# Number and digest of the published files' tensors, by their names there and shapes.
PUBLISHED = {
    'pixnerd_l16': (282, '90ac65e1b92e8ab8'),
    'pixnerd_xl16': (336, '126296d6ea9fd120'),
    'pixnerd_xxl16_t2i_512': (256, 'c4397798bf0b1307'),
    'deco_l16': (303, '355fdc1490f9b4f5'),
    'deco_xl16': (375, '020d93ddbb752d82'),
    'deco_xxl16_t2i_512': (278, '14897de8c79c19b3'),
}


def build(config: Config, text_embeddings: Path | None = None) -> torch.nn.Module:
    """The model without the weights that a user brings: the teacher's and the text encoder's."""
    model = config.model
    if model.loss.teacher is not None:
        model.loss.teacher = dict(type='DINOv2Teacher', config=dict(hidden_size=768, num_attention_heads=12))
    if model.conditioner.type == 'Qwen3TextEncoder':
        model.conditioner.model = str(ROOT / 'tests/data/qwen3_tiny')
    if 'precomputed' in model.conditioner:
        model.conditioner.precomputed = str(text_embeddings)
    model.loss.pop('velocity_teacher', None)
    with torch.device('meta'):
        return MODELS.build(model)


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_config_builds(path, tmp_path):
    config = Config.fromfile(path)
    length = config.model.conditioner.get('max_length', 128)
    settings = dict(model='qwen3_tiny', max_length=str(length))
    TextEmbeddingStore(tmp_path).write('text', [''], torch.zeros(1, length, 2048, dtype=torch.bfloat16), settings)
    model = build(config, tmp_path)
    assert model.loss.projector[0].in_features == model.backbone.dim
    assert model.loss.align_layer <= model.backbone.depth or model.loss.teacher is None
    if path.stem in PARAMETERS:
        assert sum(p.numel() for p in model.backbone.parameters()) == PARAMETERS[path.stem]
    sampled = [hook for hook in config.custom_hooks if hook.type == 'SampleGridHook']
    sides = [side for hook in sampled for side in np.ravel(hook.size)]
    assert sides
    assert not any(side % model.backbone.patch_size for side in sides)


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_config_has_every_tensor_of_the_published_file_and_no_other(name):
    with torch.device('meta'):
        net = MODELS.build(Config.fromfile(ROOT / f'mm_configs/{name}.py').model.backbone)
    lines = sorted(f'{key} {tuple(tensor.shape)}' for key, tensor in to_published(net.state_dict()).items())
    assert (len(lines), hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]) == PUBLISHED[name]


@pytest.mark.parametrize('path', sorted((ROOT / 'mm_configs').rglob('*.py')), ids=lambda path: path.stem)
def test_config_names_no_absolute_path_and_leaves_are_small(path):
    text = path.read_text()
    assert "'/" not in text
    if path in LEAVES:
        assert len(text.splitlines()) < 40


def test_data_and_weights_are_given_by_environment(monkeypatch):
    monkeypatch.setenv('PIXNERD_IMAGENET', 'elsewhere/imagenet')
    monkeypatch.setenv('PIXNERD_DINOV2', 'elsewhere/dinov2')
    config = Config.fromfile(ROOT / 'mm_configs/pixnerd_xl16.py')
    assert config.train_dataloader.dataset.data_root == 'elsewhere/imagenet/train'
    assert config.model.loss.teacher.model == 'elsewhere/dinov2'


@pytest.mark.parametrize(
    ('name', 'dropped', 'shift', 'guidance'),
    [
        ('deco_l16', 0.2, 1.0, 3.2),
        ('deco_xl16', 0.2, 1.0, 3.2),
        ('deco_xl16_512', 0.2, 1.0, 5.0),
        ('deco_xxl16_t2i_256', 0.1, 2.0, 4.0),
        ('deco_xxl16_t2i_512', 0.1, 4.0, 4.0),
        ('deco_xxl16_t2i_512_sft', 0.1, 4.0, 4.0),
    ],
)
def test_deco_is_trained_and_drawn_by_the_published_recipe(name, dropped, shift, guidance):
    model = Config.fromfile(ROOT / f'mm_configs/{name}.py').model
    assert model.loss.terms == [dict(type='FrequencyLoss', weight=1.0, quality=85)]
    assert (model.loss.cond_drop_prob, model.loss.get('timeshift', 1.0)) == (dropped, shift)
    if 't2i' in name:
        expected = dict(type='AdamsFlowSampler', num_steps=25, order=2, guidance_interval=(0.0, 1.0), timeshift=3.0)
    else:
        expected = dict(type='EulerFlowSampler', num_steps=100, guidance_interval=(0.1, 1.0), timeshift=1.0)
    assert model.sampler == dict(expected, guidance_scale=guidance)


def test_the_baseline_is_a_change_of_the_head():
    config = Config.fromfile(ROOT / 'mm_configs/baseline_l16.py')
    assert config.model.backbone.head == dict(type='LinearHead')
    assert config.model.backbone.depth == 24


def lead(path: Path) -> str:
    """The comment a config begins with."""
    lines = itertools.takewhile(lambda line: line.startswith('#'), path.read_text().splitlines())
    return ' '.join(line.removeprefix('#').strip() for line in lines)


NUMBERED = [path for path in sorted((ROOT / 'mm_configs').rglob('*.py')) if ' parameters' in lead(path)]


@pytest.mark.parametrize('path', NUMBERED, ids=lambda path: path.stem)
def test_the_number_of_parameters_in_a_comment_is_right(path):
    (said,) = re.findall(r'([\d.,]+\d)( M)? parameters', lead(path))
    with torch.device('meta'):
        counted = sum(p.numel() for p in MODELS.build(Config.fromfile(path).model.backbone).parameters())
    number, millions = said
    if millions:
        decimals = len(number.partition('.')[2])
        assert number == f'{counted / 1e6:.{decimals}f}'
    else:
        assert number == f'{counted:,}'


@pytest.mark.parametrize(
    'path', [*LEAVES, *sorted((ROOT / 'mm_configs/ablations').glob('*.py'))], ids=lambda path: path.stem
)
def test_every_name_in_a_config_is_known_and_the_picture_size_fits(path):
    config = load_config(path)
    size = image_size_of(config)
    assert [side % config.model.backbone.patch_size for side in size] == [0, 0]
    (sampled,) = [hook.size for hook in config.custom_hooks if hook.type == 'SampleGridHook']
    assert size in ([(sampled, sampled)] if isinstance(sampled, int) else [tuple(one) for one in sampled])


def test_the_picture_size_is_the_configs_or_the_checkpoints(tmp_path):
    config = Config(dict(image_size=64))
    assert image_size_of(config, 'not read') == (64, 64)
    assert image_size_of(Config(dict(image_size=(32, 48)))) == (32, 48)
    trained = ROOT / 'tests/data/v0.1/iter_4.pth'
    assert image_size_of(Config({}), trained) == (16, 16)
    with pytest.raises(ValueError, match='has no image_size; add image_size=256'):
        image_size_of(Config({}))
    for wrong in (0, 'large', (1, 2, 3), (8, -8)):
        with pytest.raises(ValueError, match=r'image_size=.* must be'):
            image_size_of(Config(dict(image_size=wrong)))

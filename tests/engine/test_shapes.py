"""Training on pictures of several shapes: it resumes exactly, previews each shape, and names the square's side."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.engine.config import load_config
from tests.training import CONFIG, ROOT, assert_same_training_state, load, logged, train

SIZES = [(32, 8), (8, 32), (16, 16)]  # (width, height)


def shapes_of(root, **options):
    rng = np.random.default_rng(0)
    for i in range(24):
        width, height = SIZES[i % 3]
        (root / f'class{i % 2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / f'class{i % 2}/{i:02d}.png')
    pipeline = [dict(type='LoadRGB'), dict(type='RandomCropResize', size=16), dict(type='PackInputs')]
    return dict(
        train_dataloader__dataset=dict(_delete_=True, type='ImageFolder', data_root=str(root), pipeline=pipeline),
        train_dataloader__batch_sampler=dict(type='BucketBatchSampler', resolution=16, max_aspect=4.0, multiple=8),
        default_hooks__samples=dict(size=[(8, 32), (32, 8)]),
        model__backbone__position_rule='grid',
        **options,
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_it_resumes_exactly(tmp_path, workers):
    options = shapes_of(tmp_path / 'data', train_dataloader__num_workers=workers)
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    runner = train(whole, **options)
    seen = {tuple(batch['inputs'].shape[2:]) for _, batch in runner.train_loop._recent}
    assert len(seen) == 2
    train(parts, **options, stop_at=4)
    train(parts, **options, resume=True)
    assert_same_training_state(load(whole / 'iter_6.pth'), load(parts / 'iter_6.pth'))
    assert logged(whole) == logged(parts)
    for shape in ('8x32', '32x8'):
        name = f'samples/iter_6_{shape}.png'
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert load(whole / 'iter_6.pth')['meta']['pixnerd']['resolution'] == 16
    pipe = load_pipeline(whole / 'iter_6.pth')
    assert pipe.net.position_rule == 'grid'
    assert [pipe([0], size=size)[0].size for size in (None, (8, 32))] == [(16, 16), (32, 8)]


def test_a_misspelt_setting_of_the_buckets_is_named():
    options = {'train_dataloader.batch_sampler': dict(type='BucketBatchSampler', max_aspekt=2.0)}
    with pytest.raises(ValueError, match='no argument max_aspekt; did you mean max_aspect'):
        load_config(CONFIG, options)


@pytest.mark.parametrize(
    'name', ['pixnerd_cifar10_shapes', 'pixnerd_xxl16_t2i_256_shapes', 'pixnerd_xxl16_t2i_finetune_shapes']
)
def test_the_configs_of_several_shapes_have_whole_patches(name):
    config = load_config(ROOT / f'mm_configs/{name}.py')
    batches = config.train_dataloader.batch_sampler
    assert batches.multiple == config.model.backbone.patch_size
    assert batches.resolution == config.image_size
    assert config.model.backbone.position_rule == 'grid'
    sizes = torch.tensor([hook['size'] for hook in config.custom_hooks])
    assert not (sizes % batches.multiple).any()

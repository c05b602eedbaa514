"""Text to image from captioned pictures, as mm_configs/pixnerd_t2i_tiny.py does it: from a folder, and from shards."""

import io
import tarfile

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

import pixnerd_plugin.engine  # noqa: F401
from pixnerd_plugin import load_backbone
from pixnerd_plugin.datasets.shard_scan import scan_shard
from pixnerd_plugin.datasets.shards import Shard, write_shard_index
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.engine.hooks import EMAHook
from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore
from tests.training import DATA, ROOT

CAPTIONS = {'red': 'a red square\nrouge', 'green': '緑', 'blue': 'a blue square 🟦', 'nothing': None}


def write_folder(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, caption in CAPTIONS.items():
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f'{name}.png')
        if caption:
            (folder / f'{name}.txt').write_text(caption, encoding='utf-8')
    return folder


def write_shard(folder, pictures):
    folder.mkdir()
    with tarfile.open(folder / '0.tar', 'w') as tar:
        for path in sorted(pictures.iterdir()):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    pairs, _ = scan_shard(str(folder / '0.tar'))
    write_shard_index(str(folder / 'index'), [(Shard('0.tar', (folder / '0.tar').stat().st_size, len(pairs)), pairs)])
    return folder


def store_embeddings(folder, texts):
    captions = ['', *(line for text in texts if text for line in text.split('\n'))]
    embeddings = Qwen3TextEncoder(DATA / 'qwen3_tiny', 32, 'float32')(captions)
    settings = {'model': 'qwen3_tiny', 'max_length': '32', 'dtype': 'float32'}
    TextEmbeddingStore(folder).write('part', captions, embeddings, settings)


def train(tmp_path, options, config='pixnerd_t2i_tiny.py'):
    options = {
        'model.conditioner.model': str(DATA / 'qwen3_tiny'),
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 2,
        **options,
    }
    config = load_config(ROOT / 'mm_configs' / config, options)
    config.work_dir, config.experiment_name = str(tmp_path / 'work'), tmp_path.name
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_a_folder_of_captioned_pictures_trains(tmp_path):
    train(tmp_path, {'train_dataloader.dataset.data_root': str(write_folder(tmp_path / 'pictures'))})
    net = load_backbone(tmp_path / 'work/iter_2.pth')
    assert net.text_dim == 40
    prompts = Qwen3TextEncoder(DATA / 'qwen3_tiny', net.text_length, 'float32')(['a red square', '緑'])
    with torch.no_grad():
        # After two steps the velocity is hardly above zero; what the head reads must depend on the prompt.
        s, _ = net.encode(torch.zeros(2, 3, 32, 32), torch.zeros(2), prompts)
    assert not torch.allclose(s[0], s[1])


def test_prompts_that_are_cut_are_counted_in_the_log(tmp_path):
    pictures = write_folder(tmp_path / 'pictures')
    for caption in pictures.glob('*.txt'):
        caption.write_text('a very long caption ' * 20)
    runner = train(tmp_path, {'train_dataloader.dataset.data_root': str(pictures)})
    assert runner.model.conditioner.num_cut >= 2
    (path,) = (tmp_path / 'work').glob('*/*.log')
    (line,) = [line for line in path.read_text().splitlines() if 'were cut' in line]
    assert 'prompts so far were longer than max_length=32 tokens and were cut; the first begins' in line
    assert "'a very long caption" in line


@pytest.mark.parametrize('complete', [True, False])
def test_shards_with_precomputed_embeddings_train_without_the_encoder(tmp_path, complete):
    shards = write_shard(tmp_path / 'shards', write_folder(tmp_path / 'pictures'))
    store_embeddings(tmp_path / 'text', CAPTIONS.values() if complete else [])
    pipeline = [
        dict(type='LoadRGB'),
        dict(type='ResizeCenterCrop', size=32),
        dict(type='RandomCaption'),
        dict(type='LoadTextEmbedding', folder=str(tmp_path / 'text')),
        dict(type='PackInputs'),
    ]
    dataset = dict(type='ShardDataset', data_root=str(shards), index=str(shards / 'index'), pipeline=pipeline)
    options = {
        'train_dataloader.dataset': dataset,
        'train_dataloader.sampler.shards_per_block': 16,
        'model.conditioner.precomputed': str(tmp_path / 'text'),
        'custom_hooks': [],
    }
    if complete:
        assert train(tmp_path, options).model.conditioner.encoder._module is None
    else:
        with pytest.raises(ValueError, match='precompute_text'):
            train(tmp_path, options)


def test_the_recipe_of_text_fine_tuning_steps_from_stored_embeddings(tmp_path, monkeypatch):
    store_embeddings(tmp_path / 'text', CAPTIONS.values())
    monkeypatch.setenv('PIXNERD_CAPTIONS', str(write_folder(tmp_path / 'pictures')))
    monkeypatch.setenv('PIXNERD_TEXT', str(tmp_path / 'text'))
    size = dict(dim=16, depth=1, num_heads=2, text_dim=40, text_length=32, text_depth=1)
    options = {
        **{f'model.backbone.{name}': value for name, value in size.items()},
        'model.backbone.head.width': 4,
        'model.conditioner.max_length': 32,
        'model.conditioner.dtype': 'float32',
        'model.loss.dim': 16,
        'model.sampler.num_steps': 2,
        'optim_wrapper.accumulative_counts': 2,
        'optim_wrapper.optimizer.lr': 0.1,
        'param_scheduler': None,
        'default_hooks.ema.decay': 0.0,
        'default_hooks.ema.interval': 1,
        'train_dataloader.dataset.pipeline.1.size': 64,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_cfg.max_iters': 4,
        'custom_hooks.0.size': 64,
        'load_from': None,
    }
    runner = train(tmp_path, options, 'pixnerd_xxl16_t2i_finetune.py')
    assert type(runner.optim_wrapper.optimizer) is torch.optim.AdamW
    assert next(hook.device for hook in runner.hooks if isinstance(hook, EMAHook)) == 'cpu'
    saved = torch.load(tmp_path / 'work/iter_4.pth', weights_only=True)
    moments = saved['optimizer']['state'].values()
    assert {int(state['step']) for state in moments} == {2}
    assert any(state['exp_avg_sq'].any() for state in moments)
    assert all(tensor.isfinite().all() for tensor in saved['state_dict'].values())

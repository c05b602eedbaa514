"""Whole training runs: resumed, killed, on several processes. What is resumed equals what was never stopped."""

import os
import platform
import runpy
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data._utils import signal_handling

from pixnerd_plugin import load_backbone, load_pipeline
from pixnerd_plugin.checkpoints import load_into
from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.datasets.shard_scan import scan_shard
from pixnerd_plugin.datasets.shards import Shard, write_shard_index
from pixnerd_plugin.engine import preemption
from pixnerd_plugin.engine.classes import use_own_classes
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.evaluation.generate import load_model
from pixnerd_plugin.registry import MODELS
from tests.training import CONFIG, ROOT, assert_same_training_state, load, logged, run_tool, start_tool, train

IMAGE_FOLDER = [
    'train_dataloader.dataset.type=ImageFolder',
    'train_dataloader.dataset.data_root=nowhere',
    'train_dataloader.dataset._delete_=True',
]


def train_whole_and_in_parts(tmp_path, options):
    """Train once without a stop and once with one; both must agree. Returns the two work folders."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(whole, **options)
    train(parts, **options, stop_at=4)
    train(parts, **options, resume=True)
    assert_same_training_state(load(whole / 'iter_6.pth'), load(parts / 'iter_6.pth'))
    assert logged(whole) == logged(parts)
    assert (whole / 'noise_0.txt').read_text() == (parts / 'noise_0.txt').read_text()
    return whole, parts


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(
            optim_wrapper__accumulative_counts=2,
            optim_wrapper__optimizer=dict(_delete_=True, type='TorchAdafactor', lr=1e-2),
        ),
        dict(train_dataloader__num_workers=2),
        dict(optim_wrapper__type='Bf16OptimWrapper'),
    ],
    ids=['plain', 'accumulation-adafactor', 'workers', 'bf16'],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, options):
    whole, parts = train_whole_and_in_parts(tmp_path, options)
    assert (whole / 'samples/iter_6.png').read_bytes() == (parts / 'samples/iter_6.png').read_bytes()


FOLDER = dict(
    type='ImageFolder',
    pipeline=[
        dict(type='LoadRGB'),
        dict(type='RandomCropResize', size=16),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ],
)
SHARDS = dict(
    type='ShardDataset',
    pipeline=[
        dict(type='LoadRGB'),
        dict(type='RandomCropResize', size=16),
        dict(type='RandomCaption'),
        dict(type='LabelFromText'),
        dict(type='PackInputs'),
    ],
)


def write_images(root):
    """Twelve pictures in three class folders, and the same in three tar shards with captions and an index."""
    rng = np.random.default_rng(0)
    for i in range(12):
        folder, stem = root / 'folder' / f'class{i % 3}', f'{i:02d}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f'{stem}.png')
        (folder / f'{stem}.txt').write_text('1\n2\n3')
    (root / 'shards').mkdir()
    found = []
    for i in range(3):
        path = root / 'shards' / f'{i}.tar'
        with tarfile.open(path, 'w') as tar:
            for file in sorted((root / 'folder' / f'class{i}').iterdir()):
                tar.add(file, file.name)
        pairs, _ = scan_shard(str(path))
        found.append((Shard(path.name, path.stat().st_size, len(pairs)), pairs))
    write_shard_index(str(root / 'index'), found)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_real_data_goes_on_where_it_was(tmp_path, kind, workers):
    write_images(tmp_path)
    if kind == 'folder':
        dataset = FOLDER | dict(data_root=str(tmp_path / 'folder'))
    else:
        dataset = SHARDS | dict(data_root=str(tmp_path / 'shards'), index=str(tmp_path / 'index'))
    sampler = dict(type='ResumableSampler', seed=0, shards_per_block=2 if kind == 'shards' else None)
    options = {
        'train_dataloader__dataset': dict(_delete_=True, **dataset),
        'train_dataloader__sampler': sampler,
        'train_dataloader__num_workers': workers,
        'optim_wrapper__accumulative_counts': 2,
    }
    train_whole_and_in_parts(tmp_path, options)


def test_training_needs_nothing_that_windows_lacks(tmp_path, monkeypatch):
    for module, name in ((os, 'pread'), (os, 'set_blocking'), (os, 'mkfifo'), (signal, 'SIGCHLD')):
        monkeypatch.delattr(module, name)
    monkeypatch.setitem(sys.modules, 'resource', None)
    monkeypatch.setattr(platform, 'system', lambda: 'Windows')  # for mmengine
    # What these two do there is other than here, where they need what is gone.
    monkeypatch.setattr(signal, 'set_wakeup_fd', lambda *args, **options: None)
    monkeypatch.setattr(signal_handling, '_set_SIGCHLD_handler', lambda: None)
    monkeypatch.setattr(preemption, '_watching', False)
    write_images(tmp_path)
    dataset = SHARDS | dict(data_root=str(tmp_path / 'shards'), index=str(tmp_path / 'index'), _delete_=True)
    for workers in (0, 1):
        options = dict(train_dataloader__dataset=dataset, train_dataloader__num_workers=workers)
        train(tmp_path / f'work_{workers}', train_cfg__max_iters=1, **options)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, uninterrupted):
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path, '--resume']
    # So many iterations that it cannot end before it is killed.
    endless = [*command, '--cfg-options', 'train_cfg.max_iters=100000', 'default_hooks.checkpoint.max_keep_ckpts=-1']
    process = start_tool(*endless, stdout=subprocess.DEVNULL)
    pointer = tmp_path / 'last_checkpoint'
    while not pointer.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for late in tmp_path.glob('iter_*.pth'):
        if int(late.stem.split('_')[1]) > 4:
            late.unlink()
    pointer.write_text(str(max(tmp_path.glob('iter_*.pth'))))

    resumed = run_tool(*command, '--reset-schedule')  # back to six iterations
    assert resumed.returncode == 0, resumed.stderr
    assert 'resumed epoch: 0, iter:' in resumed.stdout + resumed.stderr
    assert_same_training_state(load(uninterrupted / 'iter_6.pth'), load(tmp_path / 'iter_6.pth'))
    assert not list(tmp_path.glob('.tmp-*'))


def test_the_checkpoint_loads_safely_and_names_its_architecture(uninterrupted):
    checkpoint = load(uninterrupted / 'iter_6.pth')
    net = load_backbone(uninterrupted / 'iter_6.pth')
    assert net.architecture() == checkpoint['meta']['pixnerd']['architecture']
    assert torch.equal(net.patch_embed.weight, checkpoint['state_dict']['backbone.patch_embed.weight'])
    raw = load_backbone(uninterrupted / 'iter_6.pth', weights='raw')
    assert not torch.equal(net.patch_embed.weight, raw.patch_embed.weight)


def test_only_the_last_checkpoints_stay(tmp_path):
    train(tmp_path, default_hooks__checkpoint=dict(interval=1, max_keep_ckpts=2, keep_every=3))
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_3.pth', 'iter_5.pth', 'iter_6.pth']


def test_the_test_command_samples_from_a_checkpoint(tmp_path, uninterrupted):
    checkpoint = uninterrupted / 'iter_6.pth'
    arguments = ['tools/test.py', CONFIG, checkpoint, '--num-samples', '12', '--work-dir', tmp_path]
    done = run_tool(sys.executable, *arguments, '--batch-size', '5')
    assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / 'test/samples.npz')['arr_0']
    assert images.shape == (12, 16, 16, 3)
    assert images.dtype == np.uint8


@pytest.mark.parametrize(('counts', 'rate'), [(1, 0.02), (3, 0.06)])
def test_the_learning_rate_is_scaled_with_the_pictures_of_an_optimiser_step(tmp_path, monkeypatch, counts, rate):
    options = [
        'auto_scale_lr.base_batch_size=2',
        f'optim_wrapper.accumulative_counts={counts}',
        'train_cfg.max_iters=3',
    ]
    options.append('auto_scale_lr.base_batch_size=2')
    command = ['train.py', str(CONFIG), '--work-dir', str(tmp_path), '--auto-scale-lr', '--cfg-options', *options]
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    assert stop.value.code == 0
    final = load(tmp_path / 'iter_3.pth')
    # What was trained with, and what a resumed run is compared with.
    assert [group['initial_lr'] for group in final['optimizer']['param_groups']] == [pytest.approx(rate)]
    assert final['meta']['depends_on']['config']['optim_wrapper.optimizer.lr'] == pytest.approx(rate)


def test_mistakes_end_in_one_line(tmp_path, uninterrupted, monkeypatch):
    cut = tmp_path / 'cut.pth'
    cut.write_bytes((uninterrupted / 'iter_6.pth').read_bytes()[:-100])
    mistakes = {
        'absent.py does not exist': ['absent.py'],
        'gone.pth does not exist': [CONFIG, '--resume', tmp_path / 'gone.pth'],
        'cut.pth is cut short': [CONFIG, '--resume', cut],
        'model.backbone.type=Nothing is not known': [CONFIG, '--cfg-options', 'model.backbone.type=Nothing'],
        "data_root 'nowhere' does not exist": [CONFIG, '--cfg-options', *IMAGE_FOLDER],
        'no auto_scale_lr': [CONFIG, '--auto-scale-lr'],
        'together with --resume': [CONFIG, '--reset-schedule'],
        'none.pth does not exist': [CONFIG, '--cfg-options', 'resume=True', 'load_from=none.pth'],
        'use tools/dist_train.sh': [CONFIG, '--launcher', 'pytorch'],
    }
    for message, arguments in mistakes.items():
        monkeypatch.setattr(sys, 'argv', ['train.py', '--work-dir', str(tmp_path / 'work'), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
        line = str(stop.value)
        assert line.startswith('error: ')
        assert message in line
        assert '\n' not in line
    # Nothing else is printed when all is imported anew.
    done = run_tool(sys.executable, 'tools/train.py', 'absent.py', fresh=True)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1)
    done = run_tool('tools/dist_train.sh', 'absent.py', '2')
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1)


@pytest.mark.slow
def test_training_starts_from_a_network_in_any_layout_and_only_from_one_that_fits(uninterrupted, tmp_path):
    final = load(uninterrupted / 'iter_6.pth')
    network = {name.removeprefix('backbone.'): t for name, t in final['state_dict'].items() if 'backbone' in name}
    save_file(to_published(network), tmp_path / 'published.safetensors')
    options = ['train_cfg.max_iters=1', 'optim_wrapper.optimizer.lr=0.0', f'load_from={tmp_path}/published.safetensors']
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'out', '--cfg-options', *options]
    run = run_tool(*command)
    assert run.returncode == 0, run.stderr
    started = load(tmp_path / 'out/iter_1.pth')['state_dict']
    assert all(torch.equal(started[f'backbone.{name}'], tensor) for name, tensor in network.items())

    command[4] = tmp_path / 'other'
    misfit = run_tool(*command, 'model.backbone.dim=32', 'model.loss.dim=32')
    assert misfit.returncode == 1
    assert 'does not fit the backbone' in misfit.stderr.strip().splitlines()[-1]


def test_the_recipe_of_fine_tuning_trains_from_published_weights(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for label in ('cat', 'dog'):
        folder = tmp_path / 'photos/train' / label
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (300, 280, 3), np.uint8)).save(folder / '0.jpg')
    size = dict(dim=16, depth=1, num_heads=2, num_classes=10)
    head = dict(width=4, depth=1, num_frequencies=4)
    start = MODELS.build(dict(type='PixNerdDiT', patch_size=16, head=dict(type='NeuralFieldHead', **head), **size))
    save_file(to_published(start.state_dict()), tmp_path / 'published.safetensors')
    options = {
        **{f'model.backbone.{name}': value for name, value in size.items()},
        **{f'model.backbone.head.{name}': value for name, value in head.items()},
        'model.conditioner.num_classes': 10,
        'model.loss.dim': 16,
        'model.sampler.num_steps': 2,
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_cfg.max_iters': 4,
    }
    monkeypatch.setenv('PIXNERD_PHOTOS', str(tmp_path / 'photos'))
    monkeypatch.setenv('PIXNERD_INIT', str(tmp_path / 'published.safetensors'))
    command = ['train.py', ROOT / 'mm_configs/pixnerd_xl16_finetune.py', '--work-dir', tmp_path / 'work']
    command += ['--cfg-options', *(f'{name}={value}' for name, value in options.items())]
    monkeypatch.setattr(sys, 'argv', [str(part) for part in command])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    assert stop.value.code == 0
    final = load(tmp_path / 'work/iter_4.pth')
    assert {int(state['step']) for state in final['optimizer']['state'].values()} == {1}
    # One step of the warm-up is far smaller than what initial weights differ by.
    for name, tensor in start.state_dict().items():
        if name == 'label_embed.weight':
            continue
        assert not tensor.is_floating_point() or (final['state_dict'][f'backbone.{name}'] - tensor).abs().max() < 1e-5
    # Three rows: two classes of one's own, and the row of no class, which is the file's.
    table = final['state_dict']['backbone.label_embed.weight']
    assert table.shape == (3, 16)
    torch.testing.assert_close(table[2], start.label_embed.weight.detach()[10], atol=1e-5, rtol=0)
    assert (table[:2] - table[2]).abs().max() < 0.2
    assert not torch.equal(table[0], table[1])
    assert final['meta']['pixnerd']['class_names'] == ['cat', 'dog']
    pipe = load_pipeline(tmp_path / 'work/iter_4.pth', device='cpu')
    by_name, by_number = pipe(labels=['dog', 1], seeds=[0, 0], size=32, num_steps=2)
    assert by_name.tobytes() == by_number.tobytes()
    with pytest.raises(ValueError, match="give one of 2 names such as 'cat' or a number"):
        pipe(labels=['goldfish'], size=32)
    config = load_config(ROOT / 'mm_configs/pixnerd_xl16_finetune.py', options | {'model.backbone.num_classes': 7})
    assert load_model(config, str(tmp_path / 'work/iter_4.pth'), 'cpu').conditioner.class_names == ['cat', 'dog']
    grids = [(tmp_path / f'work/samples/iter_4{suffix}.png').stat().st_size for suffix in ('', '_raw')]
    assert min(grids) > 0


def test_what_has_no_classes_is_named(tmp_path):
    config = load_config(CONFIG, dict(own_classes=True))
    use_own_classes(config)
    assert config.model.conditioner.class_names == list('0123456789')
    with pytest.raises(ValueError, match=r'own_classes needs a new table of classes, and model\.lora trains adapters'):
        use_own_classes(load_config(CONFIG, {'own_classes': True, 'model.lora': dict(rank=2)}))
    captioned = dict(_delete_=True, type='CaptionFolder', data_root='captions')
    config = load_config(CONFIG, {'own_classes': True, 'train_dataloader.dataset': captioned})
    with pytest.raises(ValueError, match='own_classes: CaptionFolder has no classes; use an ImageFolder'):
        use_own_classes(config)
    net = MODELS.build(load_config(CONFIG).model.backbone)
    with pytest.raises(ValueError, match=r't2i_tiny\.safetensors has no classes'):
        load_into(net, ROOT / 'tests/data/t2i_tiny.safetensors', new_classes=True)
    with pytest.raises(ValueError, match=r'c2i_tiny\.safetensors does not fit the backbone of the config'):
        load_into(net, ROOT / 'tests/data/c2i_tiny.safetensors', new_classes=True)


def test_a_checkpoint_waits_for_the_end_of_an_accumulated_step(tmp_path):
    options = dict(
        optim_wrapper__accumulative_counts=2,
        default_hooks__checkpoint=dict(interval=3, max_keep_ckpts=1, keep_every=3),
        default_hooks__logger__interval=3,
        train_cfg__max_iters=10,
        param_scheduler__end=10,
    )
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(whole, **options)
    assert sorted(path.name for path in whole.glob('*.pth')) == ['iter_10.pth', 'iter_4.pth', 'iter_6.pth']
    train(parts, **options, stop_at=5)
    assert [path.name for path in parts.glob('*.pth')] == ['iter_4.pth']
    train(parts, **options, resume=True)
    assert_same_training_state(load(whole / 'iter_10.pth'), load(parts / 'iter_10.pth'))
    assert logged(whole) == logged(parts)

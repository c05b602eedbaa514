import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.text_encoder import convert_text_encoder
from pixnerd_plugin.registry import MODELS
from tests.golden import DATA, read, relative_error

from .files import prefixed, same, save_diffusers, save_lightning, save_mmengine, tiny_network, tiny_projector

STEPS = ['a.safetensors', 'a.pth', 'a.ckpt', 'published/a.safetensors']


@pytest.fixture
def published(tmp_path):
    """Files laid out like the published ones: the golden class network, and the golden text network."""
    tensors = {name.removeprefix('state_dict.'): t for name, t in read('t2i_tiny').items() if 'state_dict' in name}
    state = prefixed('ema_denoiser.', tensors) | prefixed('denoiser.', {k: t + 1 for k, t in tensors.items()})
    state |= prefixed('diffusion_trainer.proj.0.', tiny_projector())
    torch.save(dict(epoch=1, global_step=70, state_dict=state, optimizer_states=[]), tmp_path / 't2i.ckpt')
    return dict(class_=DATA / 'c2i_tiny_lightning.ckpt', text=tmp_path / 't2i.ckpt')


def run(source: Path, folder: Path, name: str, **options) -> Path:
    target = folder / name
    convert(source, target, layout='published' if 'published' in name else None, **options)
    return target


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


def assert_golden(path: Path, kind: str) -> None:
    if kind == 'class_':
        golden, name, condition = read('c2i_tiny'), '', 'y'
    else:
        golden, name, condition = read('t2i_tiny'), '.native48x80', 'text_embeds'
    velocity = load_backbone(path)(golden[f'x{name}'], golden['t'], golden[condition]).detach()
    assert relative_error(velocity, golden[f'v{name}']) < 1e-5


@pytest.mark.parametrize('kind', ['class_', 'text'])
@pytest.mark.parametrize(
    'between', [('a.pth',), ('published/a.safetensors',), ('a.pth', 'b.pth', 'published/a.safetensors')]
)
def test_a_published_file_comes_back_to_the_last_bit_with_raw_weights_and_projector(tmp_path, published, kind, between):
    path = published[kind]
    for name in (*between, 'back.ckpt'):
        path = run(path, tmp_path, name)
        assert_golden(path, kind)
    assert same(state_of(path), state_of(published[kind]))


@pytest.mark.parametrize('kind', ['class_', 'text'])
@pytest.mark.parametrize('first', STEPS)
@pytest.mark.parametrize('second', STEPS)
def test_every_direction_and_back_keeps_every_bit(tmp_path, published, kind, first, second):
    source = load_backbone(published[kind]).state_dict()
    there = run(published[kind], tmp_path / '1', first)
    back = run(there, tmp_path / '2', second)
    assert_golden(back, kind)
    assert same(load_backbone(back).state_dict(), source)


@pytest.mark.parametrize('weights', ['ema', 'raw'])
def test_one_set_of_weights_can_be_chosen_and_is_named(tmp_path, weights):
    ema, raw = tiny_network(seed=0).state_dict(), tiny_network(seed=1).state_dict()
    states = dict(ema=ema, raw=raw)
    sources = [
        save_lightning(tmp_path / 'a.ckpt', ema, raw, tiny_projector()),
        save_mmengine(tmp_path / 'a.pth', ema, raw, tiny_projector()),
        save_diffusers(tmp_path / 'a', ema, raw),
    ]
    for index, source in enumerate(sources):
        for name in STEPS:
            path = run(source, tmp_path / str(index), name, weights=weights)
            assert same(load_backbone(path, weights).state_dict(), states[weights])
            assert read_checkpoint(path, weights).metadata['weights'] == weights
            with pytest.raises(ValueError, match=r'no (ema|raw) weights'):
                load_backbone(path, 'raw' if weights == 'ema' else 'ema')


def test_a_single_set_fills_both_names_of_the_published_file_at_no_cost(tmp_path):
    ema, raw = tiny_network(seed=0).state_dict(), tiny_network(seed=1).state_dict()
    source = save_mmengine(tmp_path / 'a.pth', ema, raw, {})
    one, both = run(source, tmp_path, 'one.ckpt', weights='ema'), run(source, tmp_path, 'both.ckpt')
    state = state_of(one)
    assert len(state) == len(state_of(both))
    assert all(torch.equal(state[f'ema_{name}'], t) for name, t in state.items() if name.startswith('denoiser.'))
    assert one.stat().st_size < 0.7 * both.stat().st_size


def test_torch_maps_the_files_we_write(tmp_path, published):
    path = run(published['class_'], tmp_path, 'a.ckpt')
    mapped = torch.load(path, weights_only=True, mmap=True)['state_dict']
    assert same(mapped, state_of(path))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values())


def test_metadata_tells_what_the_file_is(tmp_path):
    net = tiny_network()
    stored = dict(architecture=net.architecture(), resolution=8, class_names=['a', 'b', 'c'])
    stored |= dict(sampling=dict(type='EulerFlowSampler', num_steps=7))
    source = save_mmengine(tmp_path / 'a.pth', net.state_dict(), net.state_dict(), {}, stored)
    path = run(source, tmp_path, 'a.safetensors')
    with safe_open(str(path), 'pt') as file:
        metadata = json.loads(file.metadata()['pixnerd'])
    source_of = metadata.pop('source')
    assert source_of['name'] == 'a.pth'
    assert len(source_of['sha256']) == 64
    assert metadata == dict(stored, version=1, variant='custom', weights='ema')

    plain = run(DATA / 't2i_tiny.safetensors', tmp_path, 'b.safetensors', resolution=64)
    metadata = read_checkpoint(plain).metadata
    assert (metadata['resolution'], metadata['sampling']['type'], metadata['sampling']['order']) == (
        64,
        'AdamsFlowSampler',
        2,
    )
    assert isinstance(MODELS.build(metadata['sampling']), MODELS.get('AdamsFlowSampler'))


def test_what_only_the_metadata_tells_reaches_programs_that_see_tensors_only(tmp_path):
    head = dict(type='NeuralFieldHead', width=4, depth=1, num_frequencies=4, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, head=head))
    source = save_mmengine(
        tmp_path / 'a.pth', net.state_dict(), net.state_dict(), {}, dict(architecture=net.architecture())
    )
    tensors = load_file(run(source, tmp_path, 'a.safetensors'))
    assert 'pixnerd_metadata' in tensors
    save_file(prefixed('model.diffusion_model.', tensors), tmp_path / 'saved_by_comfyui.safetensors')
    again = load_backbone(tmp_path / 'saved_by_comfyui.safetensors')
    assert again.head.alignment == 'centers'
    assert same(again.state_dict(), net.state_dict())


@pytest.mark.parametrize(('dtype', 'expected'), [('bfloat16', torch.bfloat16), ('float16', torch.float16)])
def test_dtypes(tmp_path, published, dtype, expected):
    source = load_backbone(published['class_']).state_dict()
    for name in STEPS:
        path = run(published['class_'], tmp_path, name, dtype=dtype)
        assert same(load_backbone(path).state_dict(), {k: t.to(expected) for k, t in source.items()})


def test_float8_is_for_block_matrices_only_and_saturates(tmp_path):
    state = {name: t.clone() for name, t in tiny_network().state_dict().items()}
    state['blocks.0.attn.qkv.weight'][0, 0] = 1e6
    source = save_mmengine(tmp_path / 'a.pth', state, state, {})
    path = run(source, tmp_path, 'a.safetensors', dtype='float8')
    tensors = load_file(path)
    eighths = {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}
    assert eighths == {name for name, t in state.items() if name.startswith('blocks.') and t.ndim == 2}
    assert all(t.dtype == torch.bfloat16 for name, t in tensors.items() if name not in eighths)
    assert load_backbone(path).state_dict()['blocks.0.attn.qkv.weight'][0, 0] == 448
    with pytest.raises(ValueError, match=r'as torch\.float16 holds NaN or infinite'):
        run(source, tmp_path, 'b.safetensors', dtype='float16')
    with pytest.raises(ValueError, match='float8 is for ComfyUI'):
        run(source, tmp_path, 'b.pth', dtype='float8')


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, published, monkeypatch):
    folder = tmp_path / 'out'
    state = {name: t.clone() for name, t in tiny_network().state_dict().items()}
    state['head.proj.bias'].fill_(float('nan'))
    source = save_mmengine(tmp_path / 'a.pth', state, state, {})
    for name in ('a.safetensors', 'a.pth', 'a.ckpt'):
        with pytest.raises(ValueError, match=r'head.proj.bias holds NaN|proj.bias'):
            run(source, folder, name)
    assert not any(folder.iterdir())

    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage(10**6, 10**6, 0))
    with pytest.raises(OSError, match=r'would take 0.00 GB, and .* has 0.00 GB left'):
        run(published['class_'], tmp_path / 'new', 'a.safetensors')
    assert not (tmp_path / 'new').exists()


def test_a_file_that_is_there_stays_unless_forced(tmp_path, published):
    target = tmp_path / 'a.safetensors'
    target.write_text('precious')
    with pytest.raises(FileExistsError, match='--force'):
        convert(published['class_'], target)
    assert target.read_text() == 'precious'
    convert(published['class_'], target, force=True)
    convert(target, target, force=True)
    assert_golden(target, 'class_')


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('a.txt', {}, r'must end in \.safetensors or \.pth or \.ckpt'),
        ('a.pth', dict(layout='published'), 'published layout is written to .ckpt or .safetensors'),
        ('a.safetensors', dict(layout='lora'), 'no training with LoRA'),
    ],
)
def test_mistakes_in_the_arguments(tmp_path, published, name, options, message):
    with pytest.raises(ValueError, match=message):
        convert(published['class_'], tmp_path / name, **options)


def test_a_network_without_published_form_is_refused(tmp_path):
    net = MODELS.build(
        dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, head=dict(type='LinearHead'))
    )
    source = save_mmengine(tmp_path / 'a.pth', net.state_dict(), net.state_dict(), {})
    with pytest.raises(ValueError, match='no form in the published layout'):
        convert(source, tmp_path / 'a.ckpt')


def test_text_encoder_folders_become_one_file(tmp_path):
    expected = {f'model.{name}': t for name, t in load_file(DATA / 'qwen3_tiny/model.safetensors').items()}
    convert_text_encoder(DATA / 'qwen3_tiny', tmp_path / 'one.safetensors')
    assert same(load_file(tmp_path / 'one.safetensors'), expected)

    folder = tmp_path / 'sharded'
    folder.mkdir()
    names = sorted(expected)
    shards = {'model-1.safetensors': names[::2], 'model-2.safetensors': names[1::2]}
    for shard, part in shards.items():
        save_file({name: expected[name] for name in part}, folder / shard)
    places = {name: shard for shard, part in shards.items() for name in part}
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map=places)))
    convert_text_encoder(folder, tmp_path / 'two.safetensors', dtype='float32')
    assert same(load_file(tmp_path / 'two.safetensors'), {name: t.float() for name, t in expected.items()})

    index.write_text(json.dumps(dict(weight_map=dict(places, more='../model-1.safetensors'))))
    with pytest.raises(ValueError, match='not in this folder'):
        convert_text_encoder(folder, tmp_path / 'three.safetensors')
    (folder / 'model-2.safetensors').unlink()
    index.write_text(json.dumps(dict(weight_map=places)))
    with pytest.raises(FileNotFoundError, match=r'model-2\.safetensors: no such piece'):
        convert_text_encoder(folder, tmp_path / 'three.safetensors')


PEAK = """
import resource, sys
from pathlib import Path
from pixnerd_plugin.checkpoints.convert import convert

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder = Path(sys.argv[1])
peaks = []
for size in ('small', 'large'):
    source = folder / f'{size}.pth'
    for target in ('a.ckpt', 'a.safetensors'):
        convert(source, folder / target, force=True)
        source = folder / target
    peaks.append(peak())
print(*peaks)
"""


def test_memory_is_that_of_the_largest_tensor_not_of_the_file(tmp_path):
    head = dict(type='NeuralFieldHead', width=16)
    for size, depth in (('small', 1), ('large', 12)):
        settings = dict(dim=256, depth=depth, num_heads=4, patch_size=4, num_classes=3, head=head)
        state = MODELS.build(dict(type='PixNerdDiT', **settings)).state_dict()
        save_mmengine(tmp_path / f'{size}.pth', state, state, {})
    file = (tmp_path / 'large.pth').stat().st_size // 2**20
    output = subprocess.run([sys.executable, '-c', PEAK, tmp_path], capture_output=True, text=True, check=True).stdout
    small, large = map(int, output.split())
    assert file > 100
    assert large - small < file / 4, f'{small} MB for a small file, {large} MB for one of {file} MB'

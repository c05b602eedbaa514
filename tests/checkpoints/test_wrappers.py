"""Files as trainers and other programs wrap them: each loads to the last bit, and inspect says what it took."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report
from pixnerd_plugin.checkpoints.layouts.published import to_published

from .files import prefixed, same, tiny_network, tiny_projector


@pytest.fixture(scope='module')
def states():
    return tuple(tiny_network(seed=seed).state_dict() for seed in (0, 1))


def took(path):
    found = report(path)
    assert found['odd'] == []
    return ' '.join([found['kind'], *found['took']])


@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize(
    'prefix',
    [
        '_orig_mod.',
        'module.',
        'module._orig_mod.',
        '_orig_mod.module.',
        'backbone._orig_mod.',
        'module.backbone._orig_mod.',
        'model.diffusion_model._orig_mod.',
        'ema_denoiser._orig_mod.',
    ],
)
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_what_wrappers_put_before_the_names(tmp_path, states, prefix, published, suffix):
    state = prefixed(prefix, to_published(states[0]) if published else states[0])
    path = tmp_path / f'a{suffix}'
    save_file(state, path) if suffix == '.safetensors' else torch.save(dict(state_dict=state), path)
    assert same(load_backbone(path).state_dict(), states[0])
    for wrapper in ('_orig_mod', 'module'):
        assert (f"'{wrapper}.'" in took(path)) == (wrapper in prefix)


def test_blocks_that_were_compiled_one_by_one(tmp_path, states):
    state = {name.replace('blocks.1.', 'blocks.1._orig_mod.'): tensor for name, tensor in states[0].items()}
    save_file(state, tmp_path / 'a.safetensors')
    assert same(load_backbone(tmp_path / 'a.safetensors').state_dict(), states[0])
    save_file({**state, **prefixed('module.', states[1])}, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='is there twice, with'):
        load_backbone(tmp_path / 'a.safetensors')


@pytest.mark.parametrize(
    ('entries', 'words'),
    [
        (('ema', 'model'), "'ema' and entry 'model'"),
        (('model_ema', 'state_dict'), "'model_ema'"),
        (('ema_state_dict', 'model_state_dict'), "'ema_state_dict' and entry 'model_state_dict'"),
        (('ema_state_dict', 'state_dict'), "'ema_state_dict'"),
        (('ema', 'module'), "'module'"),
    ],
)
def test_two_sets_of_weights_by_the_names_of_their_entries(tmp_path, states, entries, words):
    path = tmp_path / 'a.pth'
    torch.save({entries[0]: states[0], entries[1]: states[1], 'args': Namespace(a=1), 'step': 9}, path)
    assert same(load_backbone(path, 'ema').state_dict(), states[0])
    assert same(load_backbone(path, 'raw').state_dict(), states[1])
    assert words in took(path)
    assert report(path)['ignored'] == ['args', 'step']
    assert report(path)['steps'] == 9
    convert(path, tmp_path / 'b.pth')
    assert same(load_backbone(tmp_path / 'b.pth', 'raw').state_dict(), states[1])


@pytest.mark.parametrize('entry', ['model', 'model_state_dict', 'module', 'ema'])
def test_one_entry_of_weights(tmp_path, states, entry):
    path = tmp_path / 'a.pth'
    torch.save({entry: prefixed('module.', states[0]), 'optimizer': dict(state={})}, path)
    assert same(load_backbone(path).state_dict(), states[0])
    assert f"entry '{entry}'" in took(path)


def save_pieces(folder, state, name='model', metadata=None):
    names = sorted(state)
    places = {}
    for index, part in enumerate((names[::2], names[1::2])):
        file = f'{name}-{index + 1}.safetensors'
        save_file({key: state[key] for key in part}, folder / file, metadata)
        places |= dict.fromkeys(part, file)
    index = folder / f'{name}.safetensors.index.json'
    index.write_text(json.dumps(dict(metadata={}, weight_map=places)))
    return index, places


@pytest.mark.parametrize('published', [False, True])
def test_weights_in_pieces(tmp_path, states, published):
    state = prefixed('ema_denoiser.', to_published(states[0])) if published else states[0]
    index, _ = save_pieces(tmp_path, state, metadata=dict(pixnerd=json.dumps(dict(resolution=24))))
    assert same(load_backbone(index).state_dict(), states[0])
    assert same(load_backbone(tmp_path).state_dict(), states[0])
    assert read_checkpoint(index).metadata['resolution'] == 24
    convert(index, tmp_path / 'out.safetensors')
    assert same(load_backbone(tmp_path / 'out.safetensors').state_dict(), states[0])
    folder = tmp_path / 'diffusers'
    (folder / 'transformer').mkdir(parents=True)
    save_pieces(folder / 'transformer', state, 'diffusion_pytorch_model')
    assert same(load_backbone(folder).state_dict(), states[0])
    assert took(folder) == took(index)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content['weight_map'].update(x='../model-1.safetensors'), 'not in this folder'),
        (lambda content: content['weight_map'].update(x='/etc/passwd'), 'not in this folder'),
        (lambda content: content['weight_map'].update(x='..\\model-1.safetensors'), 'not in this folder'),
        (lambda content: content['weight_map'].update(x='C:model-1.safetensors'), 'not in this folder'),
        (lambda content: content['weight_map'].update(x='..'), 'not in this folder'),
        (lambda content: content['weight_map'].update(x=''), 'not in this folder'),
        (lambda content: content['weight_map'].update(x='model.ckpt'), 'not in this folder'),
        (lambda content: content['weight_map'].update(x=3), 'no weight_map'),
        (lambda content: content['weight_map'].update(x='model-1.safetensors'), "'x' is in none"),
        (lambda content: content['weight_map'].pop('patch_embed.bias'), 'does not say so'),
        (lambda content: content['weight_map'].update(x='model-9.safetensors'), 'no such piece'),
        (lambda content: content.update(weight_map=[]), 'no weight_map'),
        (lambda content: content.clear(), 'no weight_map'),
    ],
)
def test_an_index_names_files_of_its_folder_alone(tmp_path, states, change, message):
    index, _ = save_pieces(tmp_path, states[0])
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_backbone(index)
    assert '\n' not in str(error.value)


def scaled(state, rows=False, names=('scale_weight', 'scale_input')):
    """A state as ComfyUI's converters write it: blocks' matrices in float8, and what to multiply them by."""
    result, expected = {}, {}
    for name, tensor in state.items():
        if not name.startswith('blocks.') or tensor.ndim != 2:
            result[name] = expected[name] = tensor.bfloat16()
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True) / 448 if rows else tensor.abs().max() / 448
        result[name] = (tensor / scale).to(torch.float8_e4m3fn)
        layer = name.removesuffix('.weight')
        result[f'{layer}.{names[0]}'] = scale
        result[f'{layer}.{names[1]}'] = torch.ones(1)
        expected[name] = (result[name].float() * scale).bfloat16()
    return result, expected


@pytest.mark.parametrize('rows', [False, True])
@pytest.mark.parametrize('prefix', ['', 'model.diffusion_model.'])
def test_comfyuis_scaled_float8(tmp_path, states, rows, prefix):
    state, expected = scaled(states[0], rows)
    state['scaled_fp8'] = torch.zeros(2).to(torch.float8_e4m3fn)
    path = tmp_path / 'a.safetensors'
    save_file(prefixed(prefix, state), path)
    assert same(load_backbone(path).state_dict(), expected)
    assert 'float8 weights times their scales' in took(path)
    convert(path, tmp_path / 'b.safetensors')
    assert same(load_backbone(tmp_path / 'b.safetensors').state_dict(), expected)


def test_comfyuis_newer_quantised_layers(tmp_path, states):
    state, expected = scaled(states[0], names=('weight_scale', 'input_scale'))
    text = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    marks = {name.replace('weight_scale', 'comfy_quant'): text.clone() for name in state if 'weight_scale' in name}
    path = tmp_path / 'a.safetensors'
    save_file({**state, **marks}, path)
    assert same(load_backbone(path).state_dict(), expected)
    name = next(iter(marks))
    for text, message in ((b'{"format": "nvfp4"}', "'nvfp4'"), (b'[', 'not JSON'), (b'[]', 'a list')):
        save_file({**state, **marks, name: torch.tensor(list(text), dtype=torch.uint8)}, path)
        with pytest.raises(ValueError, match=message):
            load_backbone(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s, n: s.update({f'{n}.scale_weight': torch.ones(3)}), 'the scale of'),
        (lambda s, n: s.update({f'{n}.scale_weight': torch.tensor(float('nan'))}), 'NaN'),
        (lambda s, n: s.update({f'{n}.scale_weight': torch.tensor(1)}), 'int64'),
        (lambda s, n: s.update({f'{n}.weight': torch.ones(48, 16)}), 'no float8 weight'),
        (lambda s, n: s.pop(f'{n}.weight'), 'no float8 weight'),
    ],
)
def test_scales_that_fit_nothing(tmp_path, states, change, message):
    state, _ = scaled(states[0])
    change(state, 'blocks.0.attn.qkv')
    save_file(state, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path / 'a.safetensors')


def test_float8_in_a_torch_file(tmp_path, states):
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in states[0].items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    expected = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert same(load_backbone(tmp_path / 'a.pth').state_dict(), expected)


def test_tensors_that_share_memory_are_refused_and_tied_sets_are_not(tmp_path, states):
    path = tmp_path / 'a.pth'
    # One set under both names takes no more room, as our own .ckpt has it.
    tied = prefixed('denoiser.', to_published(states[0]))
    tied |= {f'ema_{name}': tensor for name, tensor in tied.items()}
    torch.save(dict(state_dict=tied), path)
    assert same(load_backbone(path, 'raw').state_dict(), states[0])
    large = torch.ones(2**18)
    state = {name: large[: tensor.numel()].view(tensor.shape) for name, tensor in states[0].items()}
    for index in range(2, 300):
        state |= {f'blocks.{index}.mlp.down.weight': large.view(512, 512)}
    torch.save(dict(state_dict=state), path)
    with pytest.raises(ValueError, match='they share memory'):
        load_backbone(path)
    torch.save(dict(state_dict=states[0], projector=tiny_projector()), path)
    assert same(load_backbone(path).state_dict(), states[0])

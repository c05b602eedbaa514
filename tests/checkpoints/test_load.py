import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.registry import MODELS
from tests.golden import DATA, network, read, relative_error

from .files import (
    prefixed,
    same,
    save_diffusers,
    save_lightning,
    save_mmengine,
    tiny_inputs,
    tiny_network,
    tiny_projector,
)


@pytest.fixture(params=['class', 'text'])
def nets(request):
    """Two networks of one architecture: the averaged one and the trained one."""
    return dict(ema=tiny_network(request.param, 0), raw=tiny_network(request.param, 1))


def save(path, state, **metadata):
    save_file(
        {k: t.contiguous() for k, t in state.items()}, path, {'pixnerd': json.dumps(metadata)} if metadata else None
    )
    return path


@pytest.mark.parametrize(
    ('file', 'expected'), [('c2i_tiny.safetensors', 'c2i_tiny'), ('c2i_tiny_lightning.ckpt', 'c2i_tiny')]
)
def test_class_weights_give_the_published_velocity(file, expected):
    golden, net = read(expected), load_backbone(DATA / file)
    assert relative_error(net(golden['x'], golden['t'], golden['y']), golden['v']) < 1e-5


def test_text_weights_give_the_published_velocity():
    golden, net = read('t2i_tiny'), load_backbone(DATA / 't2i_tiny.safetensors')
    x = golden['x.native48x80']
    assert relative_error(net(x, golden['t'], golden['text_embeds']), golden['v.native48x80']) < 1e-5
    velocity = net(golden['x.96x64'], golden['t'], golden['text_embeds'], token_grid=(4, 4))
    assert relative_error(velocity, golden['v.96x64']) < 1e-5


def test_the_published_file_has_two_sets_of_weights():
    golden = read('c2i_tiny')
    raw = load_backbone(DATA / 'c2i_tiny_lightning.ckpt', weights='raw')
    assert relative_error(raw(golden['x'], golden['t'], golden['y']), golden['v']) > 0.1


@pytest.mark.parametrize('weights', ['ema', 'raw'])
@pytest.mark.parametrize('kind', ['lightning', 'mmengine', 'diffusers'])
def test_every_training_file_gives_the_weights_that_are_asked_for(tmp_path, nets, kind, weights):
    states = {label: net.state_dict() for label, net in nets.items()}
    projector = tiny_projector()
    if kind == 'lightning':
        path = save_lightning(tmp_path / 'a.ckpt', states['ema'], states['raw'], projector)
    elif kind == 'mmengine':
        path = save_mmengine(tmp_path / 'a.pth', states['ema'], states['raw'], projector)
    else:
        path = save_diffusers(tmp_path / 'a', states['ema'], states['raw'])
    net = load_backbone(path, weights)
    assert same(net.state_dict(), states[weights])
    inputs = tiny_inputs(net)
    assert torch.equal(net(*inputs), nets[weights](*inputs))


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'model.diffusion_model.', 'state_dict.', 'ema_denoiser.'])
@pytest.mark.parametrize('published', [False, True])
def test_safetensors_load_in_every_known_layout(tmp_path, nets, prefix, published):
    state = nets['ema'].state_dict()
    path = save(tmp_path / 'a.safetensors', prefixed(prefix, to_published(state) if published else state))
    assert same(load_backbone(path).state_dict(), state)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_the_module_is_plain_trainable_and_of_the_files_dtype(tmp_path, nets, dtype):
    path = save(tmp_path / 'a.safetensors', nets['ema'].to(dtype).state_dict())
    net = load_backbone(path)
    assert all(p.dtype == dtype and p.requires_grad and p.device.type == 'cpu' for p in net.parameters())
    x, t, cond = tiny_inputs(net)
    net.float()(x, t, cond).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert not same(load_backbone(path).state_dict(), net.state_dict()), 'the file must not change with the module'


def test_float8_weights_become_bfloat16(tmp_path, nets):
    state = {name: t.to(torch.float8_e4m3fn) for name, t in nets['ema'].state_dict().items()}
    net = load_backbone(save(tmp_path / 'a.safetensors', state))
    assert same(net.state_dict(), {name: t.bfloat16() for name, t in state.items()})


def test_what_leaves_no_trace_comes_from_the_metadata(tmp_path):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, num_frequencies=4, alignment='centers', coordinates='sincos')
    settings = dict(dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, position_rule='grid')
    net = MODELS.build(dict(type='PixNerdDiT', **settings, head=head))
    path = save(tmp_path / 'a.safetensors', net.state_dict(), architecture=net.architecture(), resolution=32)
    assert load_backbone(path).architecture() == net.architecture()
    assert read_checkpoint(path).metadata['resolution'] == 32


def test_a_linear_head_of_one_channel_loads(tmp_path):
    settings = dict(
        dim=16, depth=1, num_heads=2, patch_size=2, in_channels=1, num_classes=3, head=dict(type='LinearHead')
    )
    net = MODELS.build(dict(type='PixNerdDiT', **settings))
    path = save(tmp_path / 'a.safetensors', net.state_dict(), architecture=net.architecture())
    assert load_backbone(path).architecture() == net.architecture()


def test_a_head_of_the_users_own_loads_by_the_metadata(tmp_path):
    class OwnHead(nn.Module):
        def __init__(self, dim, patch_size, in_channels, scale=1, operations=nn, **factory):
            super().__init__()
            self.proj = operations.Linear(dim, in_channels * patch_size**2 * scale, **factory)
            self.scale = scale

        def architecture(self):
            return dict(type='OwnHead', scale=self.scale)

    MODELS.module_dict['OwnHead'] = OwnHead
    try:
        settings = dict(dim=16, depth=1, num_heads=2, patch_size=2, num_classes=3, head=dict(type='OwnHead', scale=2))
        net = MODELS.build(dict(type='PixNerdDiT', **settings))
        path = save(tmp_path / 'a.safetensors', net.state_dict(), architecture=net.architecture())
        assert same(load_backbone(path).state_dict(), net.state_dict())
    finally:
        del MODELS.module_dict['OwnHead']


def test_training_checkpoints_follow_frozen_weights_too(tmp_path, nets):
    ema, raw = (nets[label].state_dict() for label in ('ema', 'raw'))
    trained = {name: t for name, t in raw.items() if name.startswith('head.')}
    path = save_mmengine(tmp_path / 'a.pth', ema, trained, {})
    assert same(load_backbone(path, 'raw').state_dict(), {**ema, **trained})


def test_mmengines_own_ema_hook_follows_the_loss_too(tmp_path, nets):
    ema, raw = (nets[label].state_dict() for label in ('ema', 'raw'))
    path = save_mmengine(tmp_path / 'a.pth', ema, raw, tiny_projector())
    content = torch.load(path, weights_only=True)
    content['ema_state_dict'] |= prefixed('module.loss.projector.', tiny_projector())
    torch.save(content, path)
    assert same(load_backbone(path).state_dict(), ema)
    assert same(load_backbone(path, 'raw').state_dict(), raw)


def test_one_set_of_weights_is_not_taken_for_the_other(tmp_path, nets):
    state = nets['ema'].state_dict()
    path = save(tmp_path / 'a.safetensors', state, weights='ema')
    with pytest.raises(ValueError, match=r'no raw weights; it has ema weights'):
        load_backbone(path, 'raw')
    with pytest.raises(ValueError, match=r"weights='latest' is not known"):
        load_backbone(path, 'latest')
    unlabelled = save(tmp_path / 'b.safetensors', state)
    assert same(load_backbone(unlabelled, 'raw').state_dict(), state)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_backbone(tmp_path / 'nowhere.ckpt')
    with pytest.raises(FileNotFoundError, match='diffusion_pytorch_model'):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('blocks.0.norm1.weight'), 'missing blocks.0.norm1.weight'),
        (lambda s: s.update(extra=torch.zeros(1)), 'unexpected extra'),
        (lambda s: s.update({'blocks.0.norm1.weight': torch.zeros(3)}), 'is due'),
        (lambda s: s['head.proj.bias'].fill_(float('nan')), 'head.proj.bias holds NaN'),
        (lambda s: s['head.proj.bias'].fill_(float('inf')), 'head.proj.bias holds NaN or infinite'),
        (lambda s: s.update({'head.proj.bias': torch.zeros(3, dtype=torch.int64)}), 'floating point'),
        (lambda s: s.update({'patch_embed.weight': torch.zeros(0, 48)}), 'dim=0 must be an integer'),
        (lambda s: s.clear() or s.update(a=torch.zeros(1)), 'no PixNerd network in this file; its first tensors are a'),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, message):
    state = {name: tensor.clone() for name, tensor in tiny_network().state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(save(tmp_path / 'a.safetensors', state))
    assert '\n' not in str(error.value)
    assert 'a.safetensors' in str(error.value)


def test_a_sampler_that_is_not_registered_does_not_keep_the_network_from_loading(tmp_path):
    net = network('c2i_tiny')
    path = tmp_path / 'net.safetensors'
    metadata = dict(architecture=net.architecture(), sampling=dict(type='SamplerOfSomebody'), resolution=16)
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(metadata)})
    assert load_backbone(path).architecture() == net.architecture()
    assert read_checkpoint(path).metadata.keys() == {'architecture', 'resolution'}


def test_names_of_classes_that_do_not_fit_the_network_are_refused(tmp_path):
    net = tiny_network()
    path = save(tmp_path / 'a.safetensors', net.state_dict(), class_names=['a', 'b'])
    with pytest.raises(ValueError, match=r'a\.safetensors: its metadata names 2 classes, and the network has 3'):
        load_backbone(path)
    save(path, net.state_dict(), class_names=['a', 'b', 'c'])
    assert read_checkpoint(path).metadata['class_names'] == ['a', 'b', 'c']

"""DeCo's head and loss against runs of the published implementation, gradients included."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.checkpoints import load_backbone
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report
from pixnerd_plugin.checkpoints.layouts.published import from_published, to_published
from pixnerd_plugin.functional.dct import block_dct, dct_matrix, visibility
from pixnerd_plugin.models.losses import FlowMatchREPALoss, FrequencyLoss
from pixnerd_plugin.registry import MODELS
from tests.checkpoints.files import same, save_lightning, tiny_projector
from tests.golden import DATA, network, read, relative_error


def golden_state(name):
    """The published implementation's weights, under the names that it gives them."""
    prefix = 'state_dict.'
    return {key.removeprefix(prefix): tensor for key, tensor in read(name).items() if key.startswith(prefix)}


def test_class_weights_give_the_published_velocity():
    golden, net = read('deco_c2i_tiny'), load_backbone(DATA / 'deco_c2i_tiny.safetensors')
    assert net.architecture()['head'] == dict(type='DeCoHead', width=16, depth=3, coordinates='dct', num_frequencies=8)
    assert relative_error(net(golden['x'], golden['t'], golden['y']), golden['v']) < 1e-5


@pytest.mark.parametrize('size', ['64x64', '32x48'])
def test_text_weights_give_the_published_velocity(size):
    golden, net = read('deco_t2i_tiny'), load_backbone(DATA / 'deco_t2i_tiny.safetensors')
    velocity = net(golden[f'x.{size}'], golden['t'], golden['text_embeds'])
    assert relative_error(velocity, golden[f'v.{size}']) < 1e-5


@pytest.mark.parametrize('name', ['deco_c2i_tiny', 'deco_t2i_tiny'])
def test_the_published_layout_and_back_is_exact(name):
    published = golden_state(name)
    again = to_published(from_published(published))
    assert again.keys() == published.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in published.items())


LAYOUTS = {'ours.safetensors': None, 'run.pth': None, 'release.ckpt': None, 'release.safetensors': 'published'}


@pytest.mark.parametrize(('name', 'sources'), [('deco_c2i_tiny', list(LAYOUTS)), ('deco_t2i_tiny', ['release.ckpt'])])
def test_a_published_file_goes_from_every_layout_to_every_layout_without_losing_a_bit(tmp_path, name, sources):
    ema = from_published(golden_state(name))
    raw = {key: tensor + 1 for key, tensor in ema.items()}
    source = save_lightning(tmp_path / 'published.ckpt', ema, raw, tiny_projector())
    for first in sources:
        convert(source, tmp_path / first, layout=LAYOUTS[first])
    for first, second in itertools.product(sources, LAYOUTS):
        target = tmp_path / f'{first}_to_{second}'
        convert(tmp_path / first, target, layout=LAYOUTS[second])
        assert same(load_backbone(target).state_dict(), ema)
        if 'ours.safetensors' in (first, second):
            continue  # room for the EMA alone
        assert same(load_backbone(target, 'raw').state_dict(), raw)
        if second.startswith('release'):
            tensors = load_file(target) if target.suffix == '.safetensors' else torch.load(target)['state_dict']
            for prefix, state in (('ema_denoiser.', ema), ('denoiser.', raw)):
                assert same({k: tensors[prefix + k] for k in golden_state(name)}, to_published(state))


@pytest.mark.parametrize('name', ['deco_c2i_tiny', 'deco_t2i_tiny'])
def test_a_converted_file_says_which_head_it_has_and_draws_as_published(tmp_path, name):
    convert(DATA / f'{name}.safetensors', tmp_path / 'ours.safetensors')
    described = report(tmp_path / 'ours.safetensors')
    assert next(iter(described['networks'].values()))['architecture']['head']['type'] == 'DeCoHead'
    assert not described['odd']
    pipeline = load_pipeline(tmp_path / 'ours.safetensors', device='cpu')
    assert pipeline.sampler.guidance_scale == (3.2 if pipeline.net.text_dim is None else 4.0)


def test_loss_and_gradients_are_the_published_ones():
    golden, net = read('deco_loss'), network('deco_c2i_tiny')
    loss = FlowMatchREPALoss(
        align_layer=2, repa_weight=0.5, cond_drop_prob=0.0, dim=48, projector_dim=24, teacher_dim=20,
        terms=[dict(type='FrequencyLoss', weight=1.0, quality=85)],
    )  # fmt: skip
    loss.projector.load_state_dict(
        {key.removeprefix('proj.0.'): tensor for key, tensor in golden.items() if key.startswith('proj.0.')}
    )
    losses = loss(
        net,
        golden['images'],
        golden['y'],
        noise=golden['noise'],
        t=golden['z'].sigmoid(),
        teacher_features=golden['encoder_features'],
    )
    assert losses.keys() == {'loss_flow', 'loss_repa', 'loss_frequency'}
    assert relative_error(losses['loss_flow'], golden['fm_loss'].squeeze()) < 1e-5
    assert relative_error(losses['loss_frequency'], golden['fm_loss_freq'].squeeze()) < 1e-5
    assert relative_error(losses['loss_repa'], 0.5 * golden['cos_loss'].squeeze()) < 1e-5
    assert relative_error(loss.per_image['loss_frequency'].mean(), losses['loss_frequency']) < 1e-6
    sum(losses.values()).backward()
    gradients = to_published({name: p.grad for name, p in net.named_parameters()})
    names = [name for name in golden if name.startswith('grad.') and name.removeprefix('grad.') in gradients]
    assert len(names) == len(gradients)
    for name in names:
        assert relative_error(gradients[name.removeprefix('grad.')], golden[name]) < 1e-5, name


def test_the_transform_and_its_weights_are_the_published_ones():
    golden = read('deco_loss')
    assert relative_error(dct_matrix(), golden['dct_mat']) < 1e-6
    assert relative_error(visibility(85), golden['freq_w'].squeeze()) < 1e-6


def test_the_transform_keeps_the_norm_and_pads_by_reflection():
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert relative_error(block_dct(images).square().sum(), images.square().sum()) < 1e-6
    odd = images[:, :, :13, :21]
    padded = torch.nn.functional.pad(odd, (0, 3, 0, 3), mode='reflect')
    assert torch.equal(block_dct(odd), block_dct(padded))


@pytest.mark.parametrize('quality', [0, 101])
def test_a_quality_out_of_range_is_named(quality):
    with pytest.raises(ValueError, match=f'quality={quality}'):
        FrequencyLoss(quality=quality)


def small(**head):
    torch.manual_seed(0)
    head = dict(type='DeCoHead', width=8, depth=2, **head)
    return MODELS.build(dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, head=head))


def test_it_starts_at_velocity_zero_and_chunks_change_nothing():
    net, x, cond = small(), torch.randn(2, 3, 8, 12), torch.tensor([0, 5])
    assert not net(x, torch.rand(2), cond).any()
    net.head.init_weights = None
    torch.nn.init.normal_(net.head.proj.weight)
    torch.nn.init.normal_(net.head.blocks[0].modulation.weight)
    t = torch.rand(2)
    with torch.no_grad():
        assert relative_error(net(x, t, cond, field_chunk=20), net(x, t, cond)) < 1e-6
    whole = net(x, t, cond)
    whole.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match='polar'):
        small(coordinates='polar')
    with pytest.raises(ValueError, match='DeCoHead gives 4x4 pixels a patch, not 8x8'):
        small().head(torch.randn(1, 4, 32), torch.randn(1, 4, 8, 8, 3))

"""Adapters from training to files, and from files into networks."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.lora import apply_lora
from pixnerd_plugin.models.lora import add_lora
from tests.checkpoints.files import same, save_mmengine, tiny_inputs, tiny_network
from tests.training import CONFIG, train

LAYER = 'blocks.1.attn.qkv'


@pytest.fixture(params=['class', 'text'])
def kind(request):
    return request.param


def adapter(rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 16, generator=generator), torch.randn(48, rank, generator=generator)


def save_lora(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_strength_scales_what_is_added(tmp_path):
    down, up = adapter()
    path = save_lora(
        tmp_path / 'a.safetensors',
        {f'{LAYER}.lora_A.weight': down, f'{LAYER}.lora_B.weight': up, f'{LAYER}.alpha': torch.tensor(4.0)},
    )
    net, before = tiny_network(), tiny_network().state_dict()
    apply_lora(net, path, 0.5)
    after = net.state_dict()
    torch.testing.assert_close(after[f'{LAYER}.weight'], before[f'{LAYER}.weight'] + 0.5 * (4 / 2) * up @ down)
    assert [name for name in after if not torch.equal(after[name], before[name])] == [f'{LAYER}.weight']
    apply_lora(net, path, -0.5)
    torch.testing.assert_close(net.state_dict()[f'{LAYER}.weight'], before[f'{LAYER}.weight'])


@pytest.mark.parametrize(
    'names',
    [
        ('diffusion_model.blocks.1.attn.qkv.lora_A.weight', 'diffusion_model.blocks.1.attn.qkv.lora_B.weight'),
        ('base_model.model.blocks.1.attn.qkv.lora_A.weight', 'base_model.model.blocks.1.attn.qkv.lora_B.weight'),
        ('diffusion_model.blocks.1.attn.qkv.lora_down.weight', 'diffusion_model.blocks.1.attn.qkv.lora_up.weight'),
        ('lora_unet_blocks_1_attn_qkv.lora_down.weight', 'lora_unet_blocks_1_attn_qkv.lora_up.weight'),
    ],
)
def test_every_naming_gives_the_same_network(tmp_path, names):
    down, up = adapter()
    path = save_lora(tmp_path / 'a.safetensors', dict(zip(names, (down, up), strict=True)))
    net = tiny_network()
    expected = net.state_dict()[f'{LAYER}.weight'] + up @ down
    apply_lora(net, path)
    torch.testing.assert_close(net.state_dict()[f'{LAYER}.weight'], expected)


def test_a_folder_that_peft_saved(tmp_path):
    down, up = adapter()
    prefix = f'base_model.model.{LAYER}'
    tensors = {f'{prefix}.lora_A.weight': down, f'{prefix}.lora_B.weight': up}
    save_lora(tmp_path / 'adapter_model.safetensors', tensors)
    (tmp_path / 'adapter_config.json').write_text(json.dumps(dict(r=2, lora_alpha=6)))
    net = tiny_network()
    expected = net.state_dict()[f'{LAYER}.weight'] + 3 * up @ down
    apply_lora(net, tmp_path)
    torch.testing.assert_close(net.state_dict()[f'{LAYER}.weight'], expected)
    (tmp_path / 'adapter_config.json').write_text(json.dumps(dict(lora_alpha=6, use_dora=True)))
    with pytest.raises(ValueError, match='DoRA'):
        apply_lora(net, tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.pop(f'{LAYER}.lora_A.weight'), 'has no lora_down'),
        (
            lambda t: t.update(
                {'elsewhere.lora_A.weight': torch.ones(2, 16), 'elsewhere.lora_B.weight': torch.ones(48, 2)}
            ),
            'elsewhere',
        ),
        (lambda t: t.update({f'{LAYER}.lora_A.weight': torch.ones(2, 17)}), 'the layer is'),
        (lambda t: t.update({f'{LAYER}.lora_A.weight': torch.ones(3, 16)}), 'the layer is'),
        (lambda t: t[f'{LAYER}.lora_A.weight'].fill_(float('nan')), 'NaN'),
        (lambda t: t.update(other=torch.ones(1)), 'no part of a LoRA'),
        (lambda t: t.update({f'{LAYER}.alpha': torch.ones(2)}), 'not one number'),
        (lambda t: t.clear(), 'holds no LoRA'),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, message):
    down, up = adapter()
    tensors = {f'{LAYER}.lora_A.weight': down, f'{LAYER}.lora_B.weight': up}
    change(tensors)
    net = tiny_network()
    with pytest.raises(ValueError, match=message) as error:
        apply_lora(net, save_lora(tmp_path / 'a.safetensors', tensors))
    assert '\n' not in str(error.value)
    assert same(net.state_dict(), tiny_network().state_dict())


def with_adapters(kind, seed, **options):
    """A network with adapters as if trained, and their settings."""
    net = tiny_network(kind)
    settings = add_lora(net, **dict(dict(rank=2, alpha=8), **options))
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return net, settings


def test_only_the_adapters_are_trained(kind):
    pytest.importorskip('peft')
    net, base = tiny_network(kind), tiny_network(kind)
    inputs = tiny_inputs(base)
    add_lora(net, rank=2)
    assert torch.equal(net(*inputs), base(*inputs)), 'adapters start at zero'
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained
    assert all('.lora_' in name for name in trained)
    layers = {name.split('.lora_')[0] for name in trained}
    assert {'blocks.0.attn.qkv', 'blocks.1.mlp.down'} <= layers
    assert ('text_blocks.0.attn.qkv' in layers) == (kind == 'text')


@pytest.mark.parametrize('weights', ['ema', 'raw'])
def test_a_training_with_lora_gives_a_network_and_an_adapter(tmp_path, kind, weights):
    pytest.importorskip('peft')
    nets = {}
    for seed, label in enumerate(('ema', 'raw')):
        nets[label], settings = with_adapters(kind, seed)
    trained = {n: p for n, p in nets['raw'].named_parameters() if p.requires_grad}
    meta = dict(lora=settings, architecture=nets['ema'].architecture())
    path = save_mmengine(tmp_path / 'run.pth', nets['ema'].state_dict(), trained, {}, meta)
    base = tmp_path / 'base.safetensors'
    save_file(tiny_network(kind).state_dict(), base)
    inputs = tiny_inputs(nets['ema'])
    expected = nets[weights].eval()(*inputs)

    torch.testing.assert_close(load_backbone(path, weights)(*inputs), expected)
    convert(path, tmp_path / 'lora.safetensors', layout='lora', weights=weights)
    names = set(load_file(tmp_path / 'lora.safetensors'))
    layer = f'diffusion_model.{LAYER}'
    assert {f'{layer}.lora_A.weight', f'{layer}.lora_B.weight', f'{layer}.alpha'} <= names

    net = load_backbone(base)
    apply_lora(net, tmp_path / 'lora.safetensors')
    torch.testing.assert_close(net(*inputs), expected)
    convert(base, tmp_path / 'merged.safetensors', loras=[(str(tmp_path / 'lora.safetensors'), 1.0)])
    assert same(load_backbone(tmp_path / 'merged.safetensors').state_dict(), net.state_dict())


def test_weights_without_adapters_load_into_a_network_with_them(kind):
    pytest.importorskip('peft')
    net, _ = with_adapters(kind, 0)
    adapters = {name: t.clone() for name, t in net.state_dict().items() if '.lora_' in name}
    other = tiny_network(kind, seed=5).state_dict()
    net.load_state_dict(other)
    state = net.state_dict()
    assert all(torch.equal(state[name], adapters[name]) for name in adapters)
    assert torch.equal(state['blocks.0.attn.qkv.base_layer.weight'], other['blocks.0.attn.qkv.weight'])
    net.load_state_dict(state)


def test_mistakes_in_the_settings():
    pytest.importorskip('peft')
    with pytest.raises(ValueError, match='rank=0'):
        add_lora(tiny_network(), rank=0)
    with pytest.raises(ValueError, match='nothing'):
        add_lora(tiny_network(), target_modules=['nothing'])


def test_the_runner_trains_adapters_from_a_base_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip('peft')
    monkeypatch.syspath_prepend(str(CONFIG.parent))
    train(tmp_path / 'base', train_cfg__max_iters=2)
    base = tmp_path / 'base/iter_2.pth'
    lora = dict(model__lora=dict(rank=2), load_from=str(base))
    train(tmp_path / 'run', stop_at=2, train_cfg__max_iters=4, **lora)
    train(tmp_path / 'run', resume=True, train_cfg__max_iters=4, model__lora=dict(rank=2))
    path = tmp_path / 'run/iter_4.pth'

    before, after = load_backbone(base).state_dict(), load_backbone(path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f'blocks.0.{name}.weight' for name in ('attn.qkv', 'attn.proj', 'mlp.gate_up', 'mlp.down')}
    convert(path, tmp_path / 'lora.safetensors', layout='lora')
    net = load_backbone(base)
    apply_lora(net, tmp_path / 'lora.safetensors')
    assert same(net.state_dict(), after)

"""Adapters as people have them: applied, or refused by the name of the entry."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report
from pixnerd_plugin.checkpoints.lora import apply_lora, convert_lora, is_lora, parse_lora

from .files import same, tiny_network

LAYER = 'blocks.1.attn.qkv'  # (48, 16)
FLAT = LAYER.replace('.', '_')


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


DOWN, UP = draw(2, 16), draw(48, 2)
WEIGHT = tiny_network().state_dict()[f'{LAYER}.weight'].clone()


def save(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def changed(path, strength=1.0):
    """The weight after the adapters of a file are applied; nothing else may change."""
    net = tiny_network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    apply_lora(net, path, strength)
    after = net.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == [f'{LAYER}.weight']
    return after[f'{LAYER}.weight']


@pytest.mark.parametrize(
    ('down', 'up'),
    [
        (f'base_model.model.{LAYER}.lora_A.weight', f'base_model.model.{LAYER}.lora_B.weight'),
        (f'base_model.model.{LAYER}.lora_A.default.weight', f'base_model.model.{LAYER}.lora_B.default.weight'),
        (f'base_model.model.backbone.{LAYER}.lora_A.weight', f'base_model.model.backbone.{LAYER}.lora_B.weight'),
        (f'diffusion_model.{LAYER}.lora_down.weight', f'diffusion_model.{LAYER}.lora_up.weight'),
        (f'model.diffusion_model.{LAYER}.lora_A.weight', f'model.diffusion_model.{LAYER}.lora_B.weight'),
        (f'transformer.{LAYER}.lora_A.weight', f'transformer.{LAYER}.lora_B.weight'),
        (f'transformer.{LAYER}.lora.down.weight', f'transformer.{LAYER}.lora.up.weight'),
        (f'unet.{LAYER}_lora.down.weight', f'unet.{LAYER}_lora.up.weight'),
        (f'{LAYER}.lora_linear_layer.down.weight', f'{LAYER}.lora_linear_layer.up.weight'),
        (f'lora_unet_{FLAT}.lora_down.weight', f'lora_unet_{FLAT}.lora_up.weight'),
        (f'lora_transformer_{FLAT}.lora_down.weight', f'lora_transformer_{FLAT}.lora_up.weight'),
        (f'lycoris_{FLAT}.lora_down.weight', f'lycoris_{FLAT}.lora_up.weight'),
    ],
)
def test_every_naming_is_applied_and_converts_to_what_comfyui_applies(tmp_path, down, up):
    module = down[: min(place for mark in ('.lora', '_lora.') if (place := down.find(mark)) > 0)]
    path = save(tmp_path / 'a.safetensors', {down: DOWN, up: UP, f'{module}.alpha': torch.tensor(4.0)})
    torch.testing.assert_close(changed(path, 0.5), WEIGHT + 0.5 * 4 / 2 * UP @ DOWN)
    convert_lora(path, tmp_path / 'b.safetensors')
    found = load_file(tmp_path / 'b.safetensors')
    # ComfyUI knows a layer by its name in the model, and by the name with underscores.
    stock = {f'diffusion_model.{LAYER}', f'lora_unet_{FLAT}'}
    modules = {name.rpartition('.lora_')[0] for name in found if '.lora_' in name}
    assert modules < stock
    assert set(found) == {
        f'{module}.{part}' for module in modules for part in ('lora_A.weight', 'lora_B.weight', 'alpha')
    }
    torch.testing.assert_close(changed(tmp_path / 'b.safetensors'), WEIGHT + 4 / 2 * UP @ DOWN)


def stock_change(tensors):
    """What ComfyUI's stock loader adds for plain LoRAs under its names (comfy/weight_adapter/lora.py)."""
    down, up = (tensors[f'diffusion_model.{LAYER}.lora_{side}.weight'] for side in 'AB')
    alpha = tensors.get(f'diffusion_model.{LAYER}.alpha')
    return (1.0 if alpha is None else alpha.item() / down.shape[0]) * up @ down


@pytest.mark.parametrize('rslora', [False, True])
@pytest.mark.parametrize('given', ['folder', 'file'])
def test_peft_converts_by_one_command(tmp_path, rslora, given):
    folder = tmp_path / 'peft'
    folder.mkdir()
    prefix = f'base_model.model.{LAYER}'
    save(folder / 'adapter_model.safetensors', {f'{prefix}.lora_A.weight': DOWN, f'{prefix}.lora_B.weight': UP})
    settings = dict(
        peft_type='LORA', r=2, lora_alpha=6, use_rslora=rslora, alpha_pattern={}, use_dora=False, bias='none'
    )
    (folder / 'adapter_config.json').write_text(json.dumps(settings))
    source = folder if given == 'folder' else folder / 'adapter_model.safetensors'
    expected = (6 / 2**0.5 if rslora else 6 / 2) * UP @ DOWN
    torch.testing.assert_close(changed(source), WEIGHT + expected)
    assert is_lora(source)
    convert_lora(source, tmp_path / 'a.safetensors')
    torch.testing.assert_close(stock_change(load_file(tmp_path / 'a.safetensors')), expected)
    assert "ComfyUI's LoRA loaders" in report(tmp_path / 'a.safetensors')['loads_with']
    assert "ComfyUI's LoRA loaders" not in report(source)['loads_with']


def test_what_peft_itself_saves(tmp_path):
    peft = pytest.importorskip('peft')
    net = tiny_network()
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=['attn.qkv'], init_lora_weights=False)
    peft.PeftModel(net, config).save_pretrained(tmp_path / 'peft')
    other = tiny_network()
    apply_lora(other, tmp_path / 'peft')
    merged = {
        name.replace('.base_layer', ''): tensor for name, tensor in net.state_dict().items() if 'lora_' not in name
    }
    for name, module in net.named_modules():
        if hasattr(module, 'get_delta_weight') and name.endswith('qkv'):
            merged[f'{name}.weight'] = merged[f'{name}.weight'] + module.get_delta_weight('default')
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, merged[name].detach())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(peft_type='LOHA'), 'peft_type'),
        (dict(lora_alpha='6'), 'lora_alpha'),
        (dict(lora_alpha=True), 'lora_alpha'),
        (dict(lora_alpha=float('nan')), 'lora_alpha'),
        (dict(alpha_pattern={'x': 1}), 'alpha_pattern'),
        (dict(fan_in_fan_out=True), 'fan_in_fan_out'),
        (dict(use_rslora='yes'), 'use_rslora'),
        (dict(use_dora=True), 'DoRA'),
        ([], 'a list'),
    ],
)
def test_settings_that_are_not_followed_are_refused(tmp_path, settings, message):
    prefix = f'base_model.model.{LAYER}'
    save(tmp_path / 'adapter_model.safetensors', {f'{prefix}.lora_A.weight': DOWN, f'{prefix}.lora_B.weight': UP})
    (tmp_path / 'adapter_config.json').write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        apply_lora(tiny_network(), tmp_path)


def test_lokr(tmp_path):
    a, b = draw(6, 4), draw(8, 4)
    name = f'lora_unet_{FLAT}'
    path = save(
        tmp_path / 'a.safetensors', {f'{name}.lokr_w1': a, f'{name}.lokr_w2': b, f'{name}.alpha': torch.ones(1)}
    )
    torch.testing.assert_close(changed(path, 2.0), WEIGHT + 2 * torch.kron(a, b))
    b_a, b_b = draw(8, 2), draw(2, 4)
    tensors = {f'{name}.lokr_w1': a, f'{name}.lokr_w2_a': b_a, f'{name}.lokr_w2_b': b_b, f'{name}.alpha': torch.ones(1)}
    torch.testing.assert_close(
        changed(save(path, tensors)), WEIGHT + 1 / 2 * torch.kron(a, b_a @ b_b), rtol=1e-4, atol=1e-5
    )


def test_loha(tmp_path):
    parts = [draw(48, 2), draw(2, 16), draw(48, 2, seed=1), draw(2, 16, seed=1)]
    name = f'diffusion_model.{LAYER}'
    tensors = {f'{name}.hada_{part}': t for part, t in zip(('w1_a', 'w1_b', 'w2_a', 'w2_b'), parts, strict=True)}
    path = save(tmp_path / 'a.safetensors', {**tensors, f'{name}.alpha': torch.tensor(1.0)})
    expected = WEIGHT + 0.5 * (parts[0] @ parts[1]) * (parts[2] @ parts[3])
    torch.testing.assert_close(changed(path), expected)
    convert_lora(path, tmp_path / 'b.safetensors')
    assert same(load_file(tmp_path / 'b.safetensors'), load_file(path))


@pytest.mark.parametrize('name', ['lora_magnitude_vector', 'lora_magnitude_vector.weight', 'dora_scale'])
def test_dora(tmp_path, name):
    prefix = f'base_model.model.{LAYER}'
    magnitude = draw(48).abs() + 1
    stored = magnitude[:, None] if name == 'dora_scale' else magnitude
    tensors = {f'{prefix}.lora_A.weight': DOWN, f'{prefix}.lora_B.weight': UP, f'{prefix}.{name}': stored}
    path = save(tmp_path / 'a.safetensors', tensors)
    moved = WEIGHT + UP @ DOWN
    expected = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(changed(path), expected)
    torch.testing.assert_close(changed(path, 0.25), WEIGHT + 0.25 * (expected - WEIGHT))
    assert report(path)['lora']['kinds'] == ['DoRA']
    convert_lora(path, tmp_path / 'b.safetensors')
    torch.testing.assert_close(changed(tmp_path / 'b.safetensors'), expected)
    assert load_file(tmp_path / 'b.safetensors')[f'diffusion_model.{LAYER}.dora_scale'].shape == (48, 1)


def test_dora_by_columns(tmp_path):
    magnitude = draw(1, 16).abs() + 1
    tensors = {f'{LAYER}.lora_A.weight': DOWN, f'{LAYER}.lora_B.weight': UP, f'{LAYER}.dora_scale': magnitude}
    moved = WEIGHT + UP @ DOWN
    expected = magnitude * moved / moved.norm(dim=0, keepdim=True)
    torch.testing.assert_close(changed(save(tmp_path / 'a.safetensors', tensors)), expected)


def test_full_differences_of_weights_and_biases(tmp_path):
    net, weight, bias = tiny_network(), draw(48, 16), draw(16)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors = {f'diffusion_model.{LAYER}.diff': weight, 'lora_unet_blocks_1_attn_proj.diff_b': bias}
    apply_lora(net, save(tmp_path / 'a.safetensors', tensors), 0.5)
    after = net.state_dict()
    torch.testing.assert_close(after[f'{LAYER}.weight'], before[f'{LAYER}.weight'] + 0.5 * weight)
    torch.testing.assert_close(after['blocks.1.attn.proj.bias'], before['blocks.1.attn.proj.bias'] + 0.5 * bias)
    convert_lora(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors')
    assert set(load_file(tmp_path / 'b.safetensors')) == set(tensors)


@pytest.mark.parametrize(
    'name',
    [
        'lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight',
        'lora_te1_x.alpha',
        'text_encoder.layers.0.lora_A.weight',
        'base_model.model.text_encoder.x.lora_B.weight',
        'text_encoders.clip_l.x.lora_up.weight',
        'te.x.whatever',
    ],
)
def test_entries_of_text_encoders_are_skipped_and_named(tmp_path, name):
    tensors = {f'lora_unet_{FLAT}.lora_down.weight': DOWN, f'lora_unet_{FLAT}.lora_up.weight': UP, name: torch.ones(1)}
    path = save(tmp_path / 'a.safetensors', tensors)
    assert apply_lora(tiny_network(), path) == [name]
    torch.testing.assert_close(changed(path), WEIGHT + UP @ DOWN)
    assert report(path)['ignored'] == [name]
    assert convert_lora(path, tmp_path / 'b.safetensors').skipped == [name]
    assert name not in load_file(tmp_path / 'b.safetensors')
    with pytest.raises(ValueError, match='holds no LoRA'):
        apply_lora(tiny_network(), save(path, {name: torch.ones(1)}))


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ({f'{LAYER}.oft_blocks': torch.ones(2, 2)}, 'oft_blocks'),
        ({f'{LAYER}.lora_mid.weight': torch.ones(2, 2)}, 'lora_mid'),
        ({f'{LAYER}.set_weight': torch.ones(48, 16)}, 'set_weight'),
        ({f'{LAYER}.a1.weight': torch.ones(2, 2)}, 'a1.weight'),
        ({f'{LAYER}.lora_B.bias': torch.ones(48)}, 'lora_B.bias'),
        ({f'{LAYER}.w_norm': torch.ones(48)}, 'w_norm'),
        ({f'{LAYER}.hada_t1': torch.ones(2, 2)}, 'hada_w1_a|hada_t1'),
        ({'blocks.0.attn.qkv.lokr_w1': torch.ones(6, 4), 'blocks.0.attn.qkv.lokr_t2': torch.ones(1)}, 'no lokr_w2_a'),
        ({'base_model.model.head.proj.weight': torch.ones(3, 4)}, 'head.proj.weight'),
        ({f'{LAYER}.diff': torch.ones(48, 16)}, 'not known beside|no diff|has'),
        ({'blocks.7.attn.qkv.diff': torch.ones(48, 16)}, 'blocks.7.attn.qkv, a layer that this network does not have'),
        ({f'lora_unet_{FLAT}.diff_b': torch.ones(48)}, 'does not have'),
    ],
)
def test_what_is_not_known_is_refused_by_name_and_changes_nothing(tmp_path, extra, message):
    net = tiny_network()
    path = save(tmp_path / 'a.safetensors', {f'{LAYER}.lora_A.weight': DOWN, f'{LAYER}.lora_B.weight': UP, **extra})
    with pytest.raises(ValueError, match=message) as error:
        apply_lora(net, path)
    assert '\n' not in str(error.value)
    assert same(net.state_dict(), tiny_network().state_dict())


def test_a_sum_that_overflows_is_refused(tmp_path):
    net = tiny_network().half()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    path = save(tmp_path / 'a.safetensors', {f'{LAYER}.lora_A.weight': DOWN * 1e4, f'{LAYER}.lora_B.weight': UP * 1e4})
    with pytest.raises(ValueError, match='NaN or infinite'):
        apply_lora(net, path)
    assert same(net.state_dict(), before)


def test_every_kind_merges_as_it_is_applied(tmp_path):
    base = save(tmp_path / 'base.safetensors', tiny_network().state_dict())
    tensors = {f'{LAYER}.lokr_w1': draw(6, 4), f'{LAYER}.lokr_w2': draw(8, 4), 'blocks.0.attn.proj.diff_b': draw(16)}
    path = save(tmp_path / 'a.safetensors', tensors)
    convert(base, tmp_path / 'merged.safetensors', loras=[(path, 0.5)])
    net = tiny_network()
    apply_lora(net, path, 0.5)
    assert same(load_backbone(tmp_path / 'merged.safetensors').state_dict(), net.state_dict())


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('a.safetensors', ('a.safetensors', 1.0)),
        ('a.safetensors:0.8', ('a.safetensors', 0.8)),
        ('a.safetensors:-.5', ('a.safetensors', -0.5)),
        ('a.safetensors:1e-1', ('a.safetensors', 0.1)),
        ('a.safetensors:2', ('a.safetensors', 2.0)),
        ('C:\\x.safetensors', ('C:\\x.safetensors', 1.0)),
        ('C:\\x.safetensors:0.8', ('C:\\x.safetensors', 0.8)),
        ('C:/loras/x.safetensors:0.8', ('C:/loras/x.safetensors', 0.8)),
        ('folder:with:colons', ('folder:with:colons', 1.0)),
    ],
)
def test_a_file_and_its_strength_in_one_word(text, expected):
    assert parse_lora(text) == expected


@pytest.mark.parametrize('text', ['', 'a:1e9', 'a:9999', f'a:{"9" * 400}'])
def test_a_strength_that_is_none(text):
    with pytest.raises(ValueError, match='FILE:STRENGTH'):
        parse_lora(text)

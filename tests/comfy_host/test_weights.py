"""Files that the converter writes, in ComfyUI's own loaders: the network and adapter of a training, in any dtype."""

import pytest
import torch
from safetensors.torch import load_file

# Before the host, whose checkout has a package of the same name.
from tests.checkpoints.files import save_lightning, save_mmengine

from .host import build_net, class_conditioning, import_host, require_host

require_host()
import_host()

import comfy.sd  # noqa: E402

from comfy_nodes.nodes import PixNerdEmptyImage, PixNerdSampler  # noqa: E402
from pixnerd_plugin import load_backbone  # noqa: E402
from pixnerd_plugin.checkpoints.convert import convert  # noqa: E402
from pixnerd_plugin.checkpoints.lora import apply_lora  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler  # noqa: E402

SEED, SIZE = 3, 64


@pytest.fixture
def training(tmp_path):
    """A checkpoint as our training writes it."""
    net = build_net('class')
    raw = {name: tensor + 0.01 for name, tensor in net.state_dict().items()}
    return save_mmengine(tmp_path / 'run.pth', net.state_dict(), raw, {}, dict(architecture=net.architecture()))


def core_picture(net):
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    sampler = AdamsFlowSampler(num_steps=4, order=2, guidance_scale=3.0, guidance_interval=(0.0, 1.0), timeshift=1.0)
    return sampler.sample(net.eval(), noise, torch.tensor([2]), torch.tensor([5]))


def comfy_picture(model):
    conds = [class_conditioning(label) for label in (2, 5)]
    settings = dict(seed=SEED, steps=4, cfg=3.0, order=2, shift=1.0, guidance_start=0.0, guidance_end=1.0, denoise=1.0)
    latent = PixNerdEmptyImage.execute(SIZE, SIZE, 1).args[0]
    return PixNerdSampler.execute(model, *conds, latent, **settings, record_field=False).args[0]['samples']


def error(value, reference):
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize(
    'names', [('a.safetensors',), ('a.ckpt', 'a.safetensors'), ('a.ckpt', 'a.pth', 'a.safetensors')]
)
def test_a_training_draws_the_same_picture_everywhere(tmp_path, training, names):
    expected, path = core_picture(load_backbone(training)), training
    for name in names:
        convert(path, tmp_path / name, weights='ema')
        path = tmp_path / name
    assert error(core_picture(load_backbone(path)), expected) == 0
    assert error(comfy_picture(comfy.sd.load_diffusion_model(str(path))), expected) <= 1e-4


@pytest.mark.parametrize(('dtype', 'bound'), [('bfloat16', 0.05), ('float8', 0.2)])
def test_small_dtypes_draw_nearly_the_same(tmp_path, training, dtype, bound):
    convert(training, tmp_path / 'a.safetensors', dtype=dtype)
    model = comfy.sd.load_diffusion_model(str(tmp_path / 'a.safetensors'))
    assert error(comfy_picture(model), core_picture(load_backbone(training))) < bound


def test_published_files_convert(tmp_path):
    net = build_net('class')
    path = save_lightning(tmp_path / 'a.ckpt', net.state_dict(), net.state_dict(), {})
    convert(path, tmp_path / 'a.safetensors')
    model = comfy.sd.load_diffusion_model(str(tmp_path / 'a.safetensors'))
    assert error(comfy_picture(model), core_picture(net)) <= 1e-4


@pytest.mark.parametrize('strength', [1.0, 0.5])
def test_a_trained_adapter_in_the_stock_loader(tmp_path, training, strength):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in load_backbone(training).state_dict().items():
        layer = name.removesuffix('.weight')
        if name.startswith('blocks.') and tensor.ndim == 2:
            # As PEFT names them inside a network.
            name = f'{layer}.base_layer.weight'
            for part, shape in (('A', (2, tensor.shape[1])), ('B', (tensor.shape[0], 2))):
                state[f'{layer}.lora_{part}.default.weight'] = 0.1 * torch.randn(shape, generator=generator)
        state[name] = tensor
    trained = save_mmengine(tmp_path / 'lora.pth', state, {}, {}, dict(lora=dict(rank=2, alpha=8)))
    convert(trained, tmp_path / 'lora.safetensors', layout='lora')

    merged = load_backbone(training)
    plain = core_picture(merged)
    apply_lora(merged, tmp_path / 'lora.safetensors', strength)
    expected = core_picture(merged)
    assert error(expected, plain) > 0.01
    convert(training, tmp_path / 'base.safetensors')
    model = comfy.sd.load_diffusion_model(str(tmp_path / 'base.safetensors'))
    model, _ = comfy.sd.load_lora_for_models(model, None, load_file(tmp_path / 'lora.safetensors'), strength, 0)
    assert error(comfy_picture(model), expected) <= 1e-4

"""The native MODEL, in this process: core's own loaders, samplers and patchers against the core of this repository."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from .host import CLASS_NAMES, TEXT_DIM, build_net, import_host, require_host, save_net

require_host()
import_host()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402

from comfy_nodes.model import LABELS, PixNerdModel  # noqa: E402
from comfy_nodes.nodes import (  # noqa: E402
    PixNerdAdamsSolver,
    PixNerdClassLabel,
    PixNerdDecode,
    PixNerdEmptyImage,
    PixNerdGuidanceInterval,
    PixNerdResolution,
    PixNerdSampler,
    PixNerdSigmas,
)
from comfy_nodes.weights import METADATA_TENSOR, metadata_tensor  # noqa: E402
from pixnerd_plugin.checkpoints.published import to_published  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler  # noqa: E402

KINDS = ('class', 'text')
SHIFT = {'class': 1.0, 'text': 3.0}
SIZE = (64, 96)
SEED = 11


def error(value, reference):
    with torch.no_grad():
        return float((value - reference).norm() / reference.norm())


@pytest.fixture(scope='module', params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope='module')
def net(kind):
    return build_net(kind)


@pytest.fixture
def model(kind, net, tmp_path):
    save_net(net, tmp_path / 'model.safetensors')
    return comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))


@pytest.fixture(scope='module')
def conds(kind):
    """What the core takes, and the same as ComfyUI's CONDITIONING; each conditional and null."""
    if kind == 'class':
        pair = torch.tensor([3]), torch.tensor([5])
        return pair, [[[torch.zeros(1, 1, 1), {LABELS: label}]] for label in pair]
    generator = torch.Generator().manual_seed(1)
    pair = [torch.randn(1, 128, TEXT_DIM, generator=generator) for _ in range(2)]
    return pair, [[[cond, {}]] for cond in pair]


def noise(size=SIZE, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(SEED))


def empty(size=SIZE, batch=1):
    return PixNerdEmptyImage.execute(size[1], size[0], batch).args[0]


def sample(model, conds, size=SIZE, batch=1, latent=None, **changes):
    settings = dict(
        seed=SEED,
        steps=5,
        cfg=3.0,
        order=2,
        shift=0.0,
        guidance_start=0.0,
        guidance_end=1.0,
        denoise=1.0,
        record_field=False,
    )
    latent = latent or empty(size, batch)
    return PixNerdSampler.execute(model, *conds[1], latent, **{**settings, **changes}).args[0]


def reference(net, conds, size=SIZE, batch=1, **changes):
    timeshift = SHIFT['class' if net.num_classes else 'text']
    settings = dict(num_steps=5, order=2, guidance_scale=3.0, guidance_interval=(0.0, 1.0), timeshift=timeshift)
    cond, null = (c.expand(batch, *c.shape[1:]) for c in conds[0])
    return AdamsFlowSampler(**{**settings, **changes}).sample(net, noise(size, batch), cond, null)


class TestPictures:
    @pytest.mark.parametrize('order', [1, 2, 3, 4])
    def test_the_sampler_gives_the_adams_pictures(self, model, net, conds, order):
        assert error(sample(model, conds, order=order)['samples'], reference(net, conds, order=order)) <= 1e-4

    def test_interval_and_shift_widgets(self, model, net, conds):
        result = sample(model, conds, steps=10, guidance_start=0.1, guidance_end=0.8, shift=2.5)
        expected = reference(net, conds, num_steps=10, guidance_interval=(0.1, 0.8), timeshift=2.5)
        assert error(result['samples'], expected) <= 1e-4

    def test_a_batch(self, model, net, conds):
        assert error(sample(model, conds, batch=3)['samples'], reference(net, conds, batch=3)) <= 1e-4

    def test_the_stock_route_with_our_solver_and_sigmas(self, model, net, conds):
        from comfy_extras.nodes_custom_sampler import SamplerCustom

        model = PixNerdGuidanceInterval.execute(model, 0.0, 1.0).args[0]
        sigmas = PixNerdSigmas.execute(model, 5, 0.0, 1.0).args[0]
        solver = PixNerdAdamsSolver.execute(2).args[0]
        run = getattr(SamplerCustom, 'execute', None) or SamplerCustom().sample
        result = run(model, True, SEED, 3.0, *conds[1], solver, sigmas, empty())
        samples = getattr(result, 'args', result)[0]['samples']
        assert error(samples, reference(net, conds)) <= 1e-4

    def test_ksampler_with_simple_is_euler(self, model, net, conds, kind):
        from nodes import KSampler

        model = PixNerdGuidanceInterval.execute(model, 0.0, 1.0).args[0]
        result = KSampler().sample(model, SEED, 5, 3.0, 'euler', 'simple', *conds[1], empty())[0]['samples']
        euler = EulerFlowSampler(5, 3.0, (0.0, 1.0), SHIFT[kind])
        assert error(result, euler.sample(net, noise(), *conds[0])) <= 1e-4

    def test_shift_nodes_of_either_multiplier_agree(self, model, net, conds):
        from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingSD3

        expected = reference(net, conds, timeshift=2.0)
        for node in (ModelSamplingSD3, ModelSamplingAuraFlow):
            patch = getattr(node(), node.FUNCTION)
            assert error(sample(patch(model, 2.0)[0], conds)['samples'], expected) <= 1e-4

    def test_fixed_tokens_draw_any_size(self, model, net, conds):
        model = PixNerdResolution.execute(model, 'fixed tokens', 64, 500).args[0]
        cond, null = conds[0]
        timeshift = SHIFT['class' if net.num_classes else 'text']
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=timeshift)
        expected = solver.sample(net, noise((128, 92)), cond, null, token_grid=(4, 4))
        assert error(sample(model, conds, (128, 92))['samples'], expected) <= 1e-4
        native = PixNerdResolution.execute(model, 'native', 64, 0).args[0]
        assert error(sample(native, conds)['samples'], reference(net, conds)) <= 1e-4

    def test_image_to_image_starts_from_the_image(self, model, conds):
        image = torch.linspace(-1, 1, SIZE[1]).expand(1, 3, *SIZE).contiguous()
        distances = [
            error(sample(model, conds, latent={'samples': image}, denoise=denoise)['samples'], image)
            for denoise in (0.1, 0.9)
        ]
        assert distances[0] < distances[1]
        untouched = sample(model, conds, latent={'samples': image}, denoise=0.0)
        assert torch.equal(untouched['samples'], image)

    def test_inpainting_keeps_what_is_masked(self, model, conds):
        image = torch.linspace(-1, 1, SIZE[1]).expand(1, 3, *SIZE).contiguous()
        mask = torch.zeros(1, 1, *SIZE)
        mask[..., :32] = 1
        result = sample(model, conds, latent={'samples': image, 'noise_mask': mask}, steps=8)['samples']
        torch.testing.assert_close(result[..., 32:], image[..., 32:], atol=1e-4, rtol=0)
        assert error(result[..., :32], image[..., :32]) > 0.1


class TestField:
    def test_it_decodes_regions_as_the_core_does(self, model, net, conds, kind):
        latent = sample(model, conds, record_field=True)
        cond, null = conds[0]
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=SHIFT[kind])
        _, field = solver.sample(net, noise(), cond, null, record_field=True)
        image = PixNerdDecode.execute(latent, 192, 0, 20, 10, 100, 50, 0.3, 5, 700).args[0]
        expected = field.decode((128, 192), (10, 20, 60, 120), grain=0.3, seed=5)
        assert image.shape == (1, 50, 100, 3)
        # Both keep patch vectors in bfloat16.
        torch.testing.assert_close(image, ((expected + 1) / 2).clamp(0, 1).movedim(1, -1), atol=2e-2, rtol=0)

    def test_sides_that_fit_no_grid_decode_too(self, model, conds):
        latent = sample(model, conds, record_field=True)
        assert PixNerdDecode.execute(latent, 101, 67, 0, 0, 0, 0, 0.0, 0, 0).args[0].shape == (1, 67, 101, 3)

    def test_its_own_size_needs_no_field(self, model, conds):
        latent = sample(model, conds)
        image = PixNerdDecode.execute(latent, 0, 0, 0, 0, 0, 0, 0.0, 0, 0).args[0]
        torch.testing.assert_close(image, ((latent['samples'] + 1) / 2).clamp(0, 1).movedim(1, -1))

    def test_without_one_it_says_what_to_connect(self, model, conds):
        latent = sample(model, conds)
        with pytest.raises(ValueError, match='PixNerd Sampler with record_field on'):
            PixNerdDecode.execute(latent, 200, 0, 0, 0, 0, 0, 0.0, 0, 0)
        recorded = sample(model, conds, record_field=True)
        with pytest.raises(ValueError, match='was changed after it was sampled'):
            PixNerdDecode.execute({**recorded, 'samples': latent['samples'] * 0.5}, 200, 0, 0, 0, 0, 0, 0.0, 0, 0)

    def test_runs_that_cannot_be_replayed_are_refused(self, model, conds):
        with pytest.raises(ValueError, match='set denoise to 1'):
            sample(model, conds, record_field=True, denoise=0.5)
        positive, negative = conds[1]
        with pytest.raises(ValueError, match='one positive and one negative'):
            sample(model, (None, (positive * 2, negative)), record_field=True)

    def test_it_survives_loras(self, model, net, conds):
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora(net), 1.0, 0)
        latent = sample(patched, conds, record_field=True)
        sample(model, conds)  # unpatches
        image = PixNerdDecode.execute(latent, SIZE[1], SIZE[0], 0, 0, 0, 0, 0.001, 0, 0).args[0]
        expected = ((latent['samples'] + 1) / 2).clamp(0, 1).movedim(1, -1)
        torch.testing.assert_close(image, expected, atol=5e-2, rtol=0)


def count_model_calls(model, conds, guidance, steps=10):
    rows = []
    model = PixNerdGuidanceInterval.execute(model, *guidance).args[0]
    model.set_model_unet_function_wrapper(
        lambda apply, args: (rows.append(len(args['input'])), apply_it(apply, args))[1]
    )
    comfy.samplers.sample(
        model,
        noise(),
        *conds[1],
        3.0,
        model.load_device,
        comfy.samplers.ksampler('euler'),
        PixNerdSigmas.execute(model, steps, 1.0, 1.0).args[0],
        latent_image=empty()['samples'],
    )
    return rows


def apply_it(apply, args):
    return apply(args['input'], args['timestep'], **args['c'])


def test_the_interval_skips_the_unconditional_half(model, conds):
    assert count_model_calls(model, conds, (0.0, 1.0)) == [1] + [2] * 9
    # 0.3 itself is outside.
    assert count_model_calls(model, conds, (0.3, 0.65)) == [1] * 4 + [2] * 3 + [1] * 3


def lora(net, prefix='diffusion_model.', down='lora_A.weight', up='lora_B.weight', separator='.'):
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim == 2 and name.endswith('.weight') and 'label_embed' not in name:
            out, inner = parameter.shape
            base = prefix + name.removesuffix('.weight').replace('.', separator)
            tensors[f'{base}.{down}'] = torch.randn(2, inner, generator=generator) / inner**0.5
            tensors[f'{base}.{up}'] = torch.randn(out, 2, generator=generator) * 0.3
    return tensors


NAMES = [
    dict(),
    dict(down='lora_down.weight', up='lora_up.weight'),
    dict(prefix='lora_unet_', down='lora_down.weight', up='lora_up.weight', separator='_'),
]


class TestPatching:
    @pytest.mark.parametrize('names', NAMES)
    def test_a_lora_changes_the_picture_and_unpatches_exactly(self, model, net, conds, names):
        before = sample(model, conds)['samples']
        weights = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
        tensors = lora(net, **names)
        patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
        assert len(patched.patches) == len(tensors) // 2
        assert error(sample(patched, conds)['samples'], before) > 1e-2
        assert torch.equal(sample(model, conds)['samples'], before)
        for name, tensor in model.model.diffusion_model.state_dict().items():
            assert torch.equal(tensor, weights[name]), name

    def test_the_stock_lora_saver_writes_names_that_load(self, model, net, conds):
        from comfy_extras.nodes_lora_extract import LORA_TYPES, calc_lora_model

        patched, _ = comfy.sd.load_lora_for_models(model, None, lora(net), 1.0, 0)
        before = sample(patched, conds)['samples']
        # What "Extract and Save Lora" is given: the difference of two models.
        difference = patched.clone()
        difference.add_patches(model.get_key_patches('diffusion_model.'), -1.0, 1.0)
        comfy.model_management.load_models_gpu([difference], force_patch_weights=True)
        tensors = calc_lora_model(difference, 2, 'diffusion_model.', 'diffusion_model.', {}, LORA_TYPES['standard'])
        again, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
        assert len(again.patches) == sum('.lora_up.' in name for name in tensors) > 0
        # The stock saver clamps outliers, so the picture comes near only.
        assert error(sample(again, conds)['samples'], before) < error(sample(model, conds)['samples'], before)

    @pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
    def test_small_weight_types(self, kind, net, conds, tmp_path, dtype):
        save_net(net, tmp_path / 'model.safetensors')
        path = str(tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(path, model_options={'dtype': dtype})
        assert model.model.diffusion_model.blocks[0].attn.qkv.weight.dtype == dtype
        result = sample(model, conds, record_field=True)
        assert 0 < error(result['samples'], reference(net, conds)) < 0.5
        image = PixNerdDecode.execute(result, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0]
        assert image.isfinite().all()

    @pytest.mark.parametrize('with_lora', [False, True])
    def test_partly_loaded_weights_give_the_same(self, model, net, conds, with_lora):
        if with_lora:
            model, _ = comfy.sd.load_lora_for_models(model, None, lora(net), 1.0, 0)
        x, sigma = noise(), torch.tensor([0.6])
        key = 'labels' if net.num_classes else 'c_crossattn'
        outputs = []
        for memory in (1e32, model.model_size() / 3):
            model.patch_model(model.load_device, lowvram_model_memory=memory)
            outputs.append(model.model.apply_model(x, sigma, **{key: conds[0][0]}))
            assert model.model.model_lowvram == (memory < 1e30)
            model.unpatch_model(model.offload_device)
        assert error(outputs[1], outputs[0]) <= 1e-5

    def test_memory_estimates_grow_with_the_picture(self, model):
        small, large = (model.memory_required([1, 3, side, side]) for side in (512, 1024))
        assert large == pytest.approx(4 * small)


class TestFiles:
    def test_a_saved_model_comes_back_whole(self, net, conds, tmp_path):
        metadata = {'architecture': net.architecture(), 'class_names': CLASS_NAMES}
        tensors = {**net.state_dict(), METADATA_TENSOR: metadata_tensor(metadata)}
        models = []
        for name in ('first', 'second'):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / name)
            models.append(comfy.sd.load_diffusion_model_state_dict(load_file(tmp_path / name)))
            tensors = models[-1].model.state_dict_for_saving()
        first, second = models
        assert second.model.class_names == first.model.class_names == CLASS_NAMES
        assert torch.equal(sample(second, conds)['samples'], sample(first, conds)['samples'])

    @pytest.mark.parametrize('prefix', ['', 'model.diffusion_model.', 'ema_denoiser.'])
    def test_published_names_load(self, net, conds, tmp_path, prefix):
        tensors = {prefix + name: tensor for name, tensor in to_published(net.state_dict()).items()}
        if prefix == 'ema_denoiser.':
            tensors |= {name.replace('ema_', ''): torch.zeros_like(tensor) for name, tensor in tensors.items()}
            tensors['diffusion_trainer.proj.0.weight'] = torch.zeros(2, 2)
        save_file(tensors, tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))
        assert error(sample(model, conds)['samples'], reference(net, conds)) <= 1e-4

    def test_what_the_tensors_do_not_tell_is_kept(self, tmp_path):
        net = build_net('class')
        net.head.alignment = 'centers'
        net.head.coordinates = 'cosine'
        metadata = {'architecture': net.architecture(), 'class_names': CLASS_NAMES}
        tensors = {**net.state_dict(), METADATA_TENSOR: metadata_tensor(metadata)}
        save_file(tensors, tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))
        assert model.model.diffusion_model.head.architecture() == net.head.architecture()
        positive, null = PixNerdClassLabel.execute(model, 'goldfish\n3').args
        assert positive[0][1][LABELS].tolist() == [1, 3]
        assert null[0][1][LABELS].tolist() == [5]

    def test_a_torn_file_is_an_error(self, net, tmp_path):
        tensors = net.state_dict()
        tensors.pop('blocks.1.attn.proj.bias')
        save_file(tensors, tmp_path / 'model.safetensors')
        with pytest.raises(ValueError, match=r'missing blocks\.1\.attn\.proj\.bias'):
            comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))


class TestBadInput:
    def test_conditioning_of_the_other_kind(self, model, net, conds):
        text, label = [[torch.zeros(1, 128, TEXT_DIM), {}]], [[torch.zeros(1, 1, 1), {LABELS: torch.tensor([1])}]]
        wrong, message = (text, 'holds a text') if net.num_classes else (label, 'holds a class label')
        with pytest.raises(ValueError, match=f'positive {message}'):
            sample(model, (None, (wrong, conds[1][1])))

    def test_conditioning_of_another_model(self, model, net, conds):
        text, label = [[torch.zeros(1, 77, 768), {}]], [[torch.zeros(1, 1, 1), {LABELS: torch.tensor([900])}]]
        wrong, message = (label, 'class 900 of another model') if net.num_classes else (text, 'another text encoder')
        with pytest.raises(ValueError, match=message):
            sample(model, (None, (conds[1][0], wrong)))

    def test_sizes(self, model, conds):
        with pytest.raises(ValueError, match=r'width is 88, .* multiple of 16 .* set it to 80 or 96'):
            sample(model, conds, (64, 88))
        fixed = PixNerdResolution.execute(model, 'fixed tokens', 64, 0).args[0]
        with pytest.raises(ValueError, match=r'height is 90, .* multiple of 4 '):
            sample(fixed, conds, (90, 64))

    def test_not_a_number(self, model, conds):
        with torch.no_grad():
            model.model.diffusion_model.head.proj.bias.fill_(float('nan'))
        with pytest.raises(ValueError, match='not finite'):
            sample(model, conds)

    def test_a_latent_of_another_model(self, model, conds):
        with pytest.raises(ValueError, match='connect PixNerd Empty Image'):
            sample(model, conds, latent={'samples': torch.zeros(1, 4, 64, 64)})

    def test_labels(self, model, net):
        if not net.num_classes:
            with pytest.raises(ValueError, match='draws from text'):
                PixNerdClassLabel.execute(model, '1')
            return
        for label, message in (
            ('5', 'label: class 5 is out of range'),
            ('cat', "label: class 'cat' is unknown"),
            ('', 'empty'),
        ):
            with pytest.raises(ValueError, match=message):
                PixNerdClassLabel.execute(model, label)
        with pytest.raises(ValueError, match='class_names: 2 class names were given for 5 classes'):
            PixNerdClassLabel.execute(model, '1', 'cat\ndog')

    def test_another_model(self, conds):
        with pytest.raises(ValueError, match='connect the MODEL of PixNerd Model Loader'):
            sample(None, (None, [[], []]))


def test_it_is_core_that_loads_it(model):
    assert isinstance(model.model, PixNerdModel)
    assert model.get_model_object('latent_format').latent_channels == 3


def test_registering_twice_changes_nothing():
    import comfy.model_detection
    import comfy.supported_models

    from comfy_nodes.model import PixNerdConfig, register

    detect = comfy.model_detection.detect_unet_config
    register()
    assert comfy.model_detection.detect_unet_config is detect
    assert comfy.supported_models.models.count(PixNerdConfig) == 1


def test_the_pack_registers_each_part_once():
    from pixnerd_plugin.registry import MODELS

    assert MODELS.get('PixNerdDiT') is type(build_net('class'))


def test_other_models_are_still_detected():
    import comfy.model_detection

    assert comfy.model_detection.detect_unet_config({'nothing.weight': torch.zeros(1)}, '') is None


def test_header_metadata_is_plain_json(tmp_path):
    save_net(build_net('class'), tmp_path / 'a.safetensors', class_names=CLASS_NAMES)
    _, header = comfy.utils.load_torch_file(str(tmp_path / 'a.safetensors'), return_metadata=True)
    assert json.loads(header['pixnerd'])['class_names'] == CLASS_NAMES
    assert load_file(tmp_path / 'a.safetensors')

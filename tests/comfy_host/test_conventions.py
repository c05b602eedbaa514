"""What core, its nodes and its patchers expect of any of its pixel models."""

import inspect
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from .host import build_net, import_host, require_host, save_net

require_host()
import_host()

import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402

from comfy_nodes.nodes import PixNerdAdamsSolver, PixNerdDecode, PixNerdResolution  # noqa: E402
from comfy_nodes.padding import pad  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler  # noqa: E402

from .native import SEED, SHIFT, SIZE, empty, error, lora, noise, reference, sample  # noqa: E402


def grey_levels(value, expected):
    return float(127.5 * (value.clamp(-1, 1) - expected.clamp(-1, 1)).abs().mean())


def ksampler(model, conds, latent, **changes):
    from nodes import KSampler

    settings = dict(seed=SEED, steps=5, cfg=3.0, sampler_name='euler', scheduler='simple', denoise=1.0)
    settings |= changes
    denoise = settings.pop('denoise')
    return KSampler().sample(model, *settings.values(), *conds[1], latent, denoise)[0]['samples']


class TestSizes:
    @pytest.mark.parametrize('size', [(50, 70), (64, 72), (7, 100)])
    def test_any_size_is_padded_and_cropped(self, model, net, conds, size):
        """The pixels that are there see the same network as in the padded picture, whose rest repeats them."""
        result = sample(model, conds, size)['samples']
        assert result.shape[2:] == size
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=SHIFT['class' if net.num_classes else 'text'])
        cond, null = conds[0]
        full = tuple(-(-side // 16) * 16 for side in size)

        def velocity(x, t):
            padded, times = pad(x, full), torch.tensor([t])
            crop = (..., slice(size[0]), slice(size[1]))
            both = [net(padded, times, c)[crop] for c in (cond, null)]
            return both[0] if t == 0 else both[1] + 3.0 * (both[0] - both[1])

        with torch.no_grad():
            assert error(result, solver.integrate(velocity, noise(size))) <= 1e-4

    def test_a_fixed_grid_takes_any_size_too(self, model, conds):
        fixed = PixNerdResolution.execute(model, 'fixed tokens', 64, 0).args[0]
        assert sample(fixed, conds, (90, 67))['samples'].shape[2:] == (90, 67)

    def test_a_padded_picture_s_field_is_the_picture(self, model, conds):
        latent = sample(model, conds, (50, 70), record_field=True)
        image = PixNerdDecode.execute(latent, 70, 50, 0, 0, 0, 0, 1e-6, 0, 0).args[0]
        expected = ((latent['samples'] + 1) / 2).clamp(0, 1).movedim(1, -1)
        torch.testing.assert_close(image, expected, atol=2e-2, rtol=0)
        twice = PixNerdDecode.execute(latent, 140, 100, 0, 0, 0, 0, 0.0, 0, 0).args[0]
        assert twice.shape == (1, 100, 140, 3)
        part = PixNerdDecode.execute(latent, 140, 100, 30, 20, 50, 40, 0.0, 0, 0).args[0]
        torch.testing.assert_close(part, twice[:, 20:60, 30:80], atol=1e-5, rtol=0)

    def test_stock_empty_latents_have_the_size_they_say(self, model, conds):
        from nodes import EmptyLatentImage

        latent = EmptyLatentImage().generate(96, 64, 1)[0]
        ours = sample(model, conds, latent=latent)
        assert ours['samples'].shape == (1, 3, 64, 96)
        assert not {'downscale_ratio_spacial'} & set(ours)
        assert torch.equal(ours['samples'], sample(model, conds)['samples'])

    def test_so_does_ksampler_s(self, model, conds):
        import comfy.sample

        if 'downscale_ratio_spacial' not in inspect.signature(comfy.sample.fix_empty_latent_channels).parameters:
            pytest.skip('this host does not note the scale of an empty latent')
        from nodes import EmptyLatentImage

        stock = ksampler(model, conds, EmptyLatentImage().generate(96, 64, 1)[0])
        assert torch.equal(stock, ksampler(model, conds, empty()))


class TestWrappers:
    def test_they_run_and_may_write_into_what_they_get(self, model, conds):
        calls = []

        def wrapper(executor, x, *args):
            calls.append(x.shape)
            result = executor(x, *args)
            x += 100
            return result

        expected = sample(model, conds)['samples']
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, 'test', wrapper)
        assert torch.equal(sample(patched, conds)['samples'], expected)
        assert len(calls) == 5

    @pytest.mark.parametrize('threshold', [0.05, 0.2])
    def test_easy_cache_leaves_the_picture(self, model, conds, threshold):
        from comfy_extras.nodes_easycache import EasyCacheHolder, EasyCacheNode

        # Older core adds the differences of both halves of guidance to each.
        cfg = 3.0 if hasattr(EasyCacheHolder, 'can_apply_cache_diff') else 1.0
        cached = EasyCacheNode.execute(model, threshold, 0.15, 0.95, False).args[0]
        expected = ksampler(model, conds, empty(), steps=20, cfg=cfg)
        assert grey_levels(ksampler(cached, conds, empty(), steps=20, cfg=cfg), expected) < 4


class TestAttention:
    def test_an_override_is_called_in_every_layer(self, model, net, conds):
        calls = []

        def override(function, *args, **kwargs):
            calls.append(args[0].shape)
            return function(*args, **kwargs) * (0 if halved else 1)

        halved = False
        patched = model.clone()
        patched.model_options['transformer_options']['optimized_attention_override'] = override
        expected = sample(model, conds)['samples']
        assert torch.equal(sample(patched, conds)['samples'], expected)
        assert len(calls) == 5 * (2 + (0 if net.num_classes else 1))
        halved = True
        assert error(sample(patched, conds)['samples'], expected) > 1e-3

    def test_patches_before_and_after_it(self, model, conds):
        seen = []

        def before(q, k, v, pe, attn_mask, extra_options):
            seen.append((extra_options['block_index'], extra_options['img_slice'], q.shape[2]))
            return {'v': v * 2}

        def after(out, extra_options):
            assert out.ndim == 3
            return out / 2

        expected = sample(model, conds)['samples']
        patched = model.clone()
        patched.set_model_attn1_patch(before)
        patched.set_model_attn1_output_patch(after)
        assert error(sample(patched, conds)['samples'], expected) <= 1e-5
        assert seen[:2] == [(0, [0, 24], 24), (1, [0, 24], 24)]

    def test_skip_layer_guidance_skips_a_layer(self, model, net, conds):
        from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple

        patched = SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, '1', '1').args[0]
        shorter = build_net('class' if net.num_classes else 'text')
        del shorter.blocks[1:]
        shorter.depth = 1
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=SHIFT['class' if net.num_classes else 'text'])
        cond, null = conds[0]

        def velocity(x, t):
            times = torch.tensor([t])
            # The node takes part in the unconditional half alone, which the first step does not have.
            v, v0 = net(x, times, cond), shorter(x, times, null)
            return v if t == 0 else v0 + 3.0 * (v - v0)

        with torch.no_grad():
            assert error(sample(patched, conds)['samples'], solver.integrate(velocity, noise())) <= 1e-4

    def test_a_block_is_replaced_and_called_by_its_replacement(self, model, conds):
        def replacement(args, extra):
            out = extra['original_block'](args)
            assert set(args) == {'img', 'txt', 'vec', 'pe', 'attn_mask', 'transformer_options'}
            return {**out, 'img': args['img'] + 2 * (out['img'] - args['img'])}

        patched = model.clone()
        patched.set_model_patch_replace(lambda args, extra: extra['original_block'](args), 'dit', 'double_block', 0)
        assert torch.equal(sample(patched, conds)['samples'], sample(model, conds)['samples'])
        patched.set_model_patch_replace(replacement, 'dit', 'double_block', 0)
        assert error(sample(patched, conds)['samples'], sample(model, conds)['samples']) > 1e-3

    def test_rope_options_scale_and_shift_the_positions(self, model, conds):
        options = dict(scale_x=1.0, shift_x=7.0, scale_y=1.0, shift_y=-3.0)
        moved, scaled = model.clone(), model.clone()
        moved.model_options['transformer_options']['rope_options'] = options
        scaled.model_options['transformer_options']['rope_options'] = {**options, 'scale_x': 2.0}
        expected = sample(model, conds)['samples']
        # Attention feels differences of positions only; a text's keys are not rotated.
        difference = error(sample(moved, conds)['samples'], expected)
        assert difference <= 1e-4 if conds[0][0].ndim == 1 else difference > 1e-4
        assert error(sample(scaled, conds)['samples'], expected) > 1e-4


class TestRefusals:
    def test_controlnet(self, model, conds):
        positive, negative = conds[1]
        held = [[positive[0][0], {**positive[0][1], 'control': object()}]]
        with pytest.raises((ValueError, AttributeError), match=r'positive holds a ControlNet|get_extra_hooks'):
            sample(model, (None, (held, negative)))
        with pytest.raises(ValueError, match='no ControlNet for PixNerd'):
            model.model.diffusion_model(noise(), torch.ones(1), control={})

    @pytest.mark.parametrize('where', ['patches', 'patches_replace'])
    def test_patches_of_unets(self, model, conds, where):
        patched = model.clone()
        if where == 'patches':
            patched.set_model_output_block_patch(lambda h, hsp, options: (h, hsp))
        else:
            patched.set_model_attn1_replace(lambda *args: args[2], 'middle', 0)
        with pytest.raises(ValueError, match=r'patches .*, which PixNerd does not have'):
            sample(patched, conds)

    def test_the_sampling_of_other_models(self, model, conds):
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        patched = ModelSamplingDiscrete().patch(model, 'eps', False)[0]
        with pytest.raises(ValueError, match='PixNerd is a flow model'):
            ksampler(patched, conds, empty())

    @pytest.mark.parametrize('solver', ['adams', 'euler'])
    def test_sigmas_of_other_models(self, model, conds, solver):
        from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler

        run = getattr(AlignYourStepsScheduler, 'execute', None) or AlignYourStepsScheduler().get_sigmas
        result = run('SD1', 5, 1.0)
        sigmas = getattr(result, 'args', result)[0]
        sampler = PixNerdAdamsSolver.execute(2).args[0] if solver == 'adams' else comfy.samplers.ksampler('euler')
        with pytest.raises(ValueError, match='connect PixNerd Sigmas'):
            comfy.samplers.sample(
                model, noise(), *conds[1], 3.0, model.load_device, sampler, sigmas, latent_image=empty()['samples']
            )

    def test_a_tiny_denoise_changes_nothing(self, model, conds):
        image = torch.linspace(-1, 1, SIZE[1]).expand(1, 3, *SIZE).contiguous()
        result = sample(model, conds, latent={'samples': image}, denoise=1e-9)['samples']
        torch.testing.assert_close(result, image, atol=1e-4, rtol=0)

    def test_a_shift_that_is_no_number(self, model, conds):
        with pytest.raises(ValueError, match='the shift is nan'):
            sample(model, conds, shift=float('nan'))

    def test_an_interval_on_two_scales_is_said_once(self, model, conds, caplog):
        from comfy_extras.nodes_custom_sampler import DualCFGGuider

        from comfy_nodes.nodes import PixNerdGuidanceInterval

        interval = PixNerdGuidanceInterval.execute(model, 0.2, 0.8).args[0]
        run = getattr(DualCFGGuider, 'execute', None) or DualCFGGuider().get_guider
        arguments = [interval, conds[1][0], conds[1][0], conds[1][1], 2.0, 3.0]
        made = run(*arguments, *(['regular'] if 'style' in inspect.signature(run).parameters else []))
        guider = getattr(made, 'args', made)[0]
        with caplog.at_level(logging.WARNING):
            guider.sample(noise(), empty()['samples'], comfy.samplers.ksampler('euler'), torch.tensor([1.0, 0.5, 0.0]))
        assert caplog.text.count('the guidance interval does not act on') == 1


class TestWeights:
    def test_a_patch_reaches_the_text_s_positions(self, model, net, conds):
        if net.num_classes:
            assert not hasattr(model.model.diffusion_model, 'text_embed')
            return
        key = 'diffusion_model.text_embed.positions.weight'
        patched = model.clone()
        change = torch.ones_like(net.text_embed.positions)
        assert patched.add_patches({key: ('diff', (change,))}, 1.0) == [key]
        changed = sample(patched, conds)['samples']
        assert error(changed, sample(model, conds)['samples']) > 1e-3
        moved = build_net('text')
        with torch.no_grad():
            moved.text_embed.positions += 1
        assert error(changed, reference(moved, conds)) <= 1e-4

    @pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_float8_is_for_the_blocks_matrices(self, net, conds, tmp_path, dtype):
        save_net(net, tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'), model_options={'dtype': dtype})
        for name, parameter in model.model.diffusion_model.named_parameters():
            is_small = parameter.ndim == 2 and 'blocks.' in name
            assert parameter.dtype == (dtype if is_small else torch.bfloat16), name

    def test_the_converter_s_float8_keeps_the_field(self, net, conds, tmp_path):
        from pixnerd_plugin.checkpoints.convert import convert

        save_net(net, tmp_path / 'model.safetensors')
        convert(tmp_path / 'model.safetensors', tmp_path / 'small.safetensors', dtype='float8')
        model = comfy.sd.load_diffusion_model(str(tmp_path / 'small.safetensors'))
        stored = load_file(tmp_path / 'small.safetensors')
        for name in ('head.generator.weight', 'blocks.0.attn.proj.bias', 'patch_embed.weight'):
            loaded = model.model.diffusion_model.get_parameter(name)
            assert torch.equal(loaded.float(), stored[name].float()), name

    def test_quantised_layers_load(self, net, conds, tmp_path):
        import comfy.utils

        if not hasattr(comfy.utils, 'detect_layer_quantization'):
            pytest.skip('this host has no quantised layers')
        tensors = net.state_dict()
        quantised = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        for name in [name for name in tensors if name.startswith('blocks.') and tensors[name].ndim == 2]:
            layer, weight = name.removesuffix('.weight'), tensors[name]
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors |= {f'{layer}.weight_scale': scale, f'{layer}.comfy_quant': quantised.clone()}
        save_file(tensors, tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))
        assert error(sample(model, conds)['samples'], reference(net, conds)) < 0.15

    def test_a_lora_changes_what_is_loaded_in_float8(self, net, conds, tmp_path):
        save_net(net, tmp_path / 'model.safetensors')
        path = str(tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(path, model_options={'dtype': torch.float8_e4m3fn})
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora(net), 1.0, 0)
        # As core runs nodes.
        with torch.no_grad():
            assert error(sample(patched, conds)['samples'], sample(model, conds)['samples']) > 1e-2


def test_the_latent_format_is_that_of_pixels(model):
    latent_format = model.get_model_object('latent_format')
    assert (latent_format.latent_channels, latent_format.spacial_downscale_ratio) == (3, 1)


def test_core_asks_for_nothing_that_the_model_lacks(model):
    """Every public method of core's base model is there, and none of the pack's takes fewer arguments."""
    for name, theirs in inspect.getmembers(comfy.model_base.BaseModel, inspect.isfunction):
        ours = getattr(type(model.model), name)
        parameters = inspect.signature(ours).parameters.values()
        if name != '__init__' and ours is not theirs and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            assert set(inspect.signature(theirs).parameters) <= {p.name for p in parameters}, name

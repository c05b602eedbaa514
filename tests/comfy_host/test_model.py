"""The native MODEL, in this process: core's own loaders and samplers against the library."""

import pytest
import torch

from .host import TEXT_DIM, class_conditioning, import_host, require_host

require_host()
import_host()

import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402

from comfy_nodes.nodes import (  # noqa: E402
    PixNerdAdamsSolver,
    PixNerdClassLabel,
    PixNerdDecode,
    PixNerdGuidanceInterval,
    PixNerdResolution,
    PixNerdSigmas,
)
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler  # noqa: E402

from .native import SEED, SHIFT, SIZE, empty, error, lora, noise, reference, sample  # noqa: E402


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

    def test_fixed_tokens_blended(self, model, net, conds, kind):
        def picture(*widgets, size=(128, 92)):
            return sample(PixNerdResolution.execute(model, *widgets).args[0], conds, size)['samples']

        hard, joined = picture('fixed tokens', 64, 0), picture('fixed tokens', 64, 0, 0.5)
        assert torch.equal(picture('fixed tokens', 64, 0, 0.0), hard)
        assert error(joined, hard) > 1e-3
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=SHIFT[kind])
        expected = solver.sample(net, noise((128, 92)), *conds[0], token_grid=(4, 4), blend=0.5)
        assert error(joined, expected) <= 1e-4
        # Only fixed tokens are blended, and a second node takes the first one's setting back.
        plain = sample(model, conds)['samples']
        assert torch.equal(picture('native', 64, 0, 1.0, size=SIZE), plain)
        again = PixNerdResolution.execute(model, 'fixed tokens', 64, 0, 0.5).args[0]
        again = PixNerdResolution.execute(again, 'fixed tokens', 64, 0).args[0]
        assert torch.equal(sample(again, conds, (128, 92))['samples'], hard)

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

    @pytest.mark.parametrize('blend', [0.0, 0.5, 1.0])
    def test_blend_is_the_core_s(self, model, net, conds, kind, blend):
        latent = sample(model, conds, record_field=True)
        cond, null = conds[0]
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=SHIFT[kind])
        _, field = solver.sample(net, noise(), cond, null, record_field=True)
        image = PixNerdDecode.execute(latent, 192, 128, 0, 0, 0, 0, 0.0, 0, 0, -1, blend).args[0]
        expected = field.decode((128, 192), blend=blend)
        torch.testing.assert_close(image, ((expected + 1) / 2).clamp(0, 1).movedim(1, -1), atol=2e-2, rtol=0)
        hard = field.decode((128, 192), blend=0.0)
        assert (error(expected, hard) > 1e-3) == (blend > 0)

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
        with pytest.raises(ValueError, match='is not as it was sampled'):
            PixNerdDecode.execute({**recorded, 'samples': latent['samples'] * 0.5}, 200, 0, 0, 0, 0, 0, 0.0, 0, 0)

    def test_runs_that_cannot_be_replayed_are_refused(self, model, conds):
        with pytest.raises(ValueError, match='set denoise to 1'):
            sample(model, conds, record_field=True, denoise=0.5)
        positive, negative = conds[1]
        with pytest.raises(ValueError, match='positive holds 2'):
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


class TestBadInput:
    def test_conditioning_of_the_other_kind(self, model, net, conds):
        text, label = [[torch.zeros(1, 128, TEXT_DIM), {}]], class_conditioning(1)
        wrong, message = (text, 'holds a text') if net.num_classes else (label, 'holds a class label')
        with pytest.raises(ValueError, match=f'positive {message}'):
            sample(model, (None, (wrong, conds[1][1])))

    def test_conditioning_of_another_model(self, model, net, conds):
        text, label = [[torch.zeros(1, 77, 768), {}]], class_conditioning(900, 1000)
        wrong, message = (label, 'class of another model') if net.num_classes else (text, 'another text encoder')
        with pytest.raises(ValueError, match=message):
            sample(model, (None, (conds[1][0], wrong)))

    def test_not_a_number(self, model, conds):
        with torch.no_grad():
            model.model.diffusion_model.head.proj.bias.fill_(float('nan'))
        with pytest.raises(ValueError, match='not finite'):
            sample(model, conds)

    def test_not_a_number_where_the_device_is_waited_for(self, model, net, conds, monkeypatch):
        from comfy_nodes import network

        monkeypatch.setattr(network, 'READ_AT_ONCE', ())
        checked, check = [], network.check_finite
        monkeypatch.setattr(network, 'check_finite', lambda v, t: checked.append(float(t)) or check(v, t))
        own = model.model.diffusion_model
        decode, calls = own.decode, []

        def broken(*args, **kwargs):
            calls.append(0)
            return decode(*args, **kwargs) * (float('nan') if len(calls) > 10 else 1)

        for _ in range(2):
            sample(model, conds, steps=10)
            # One call a step; the first and the ninth of each run.
            assert len(checked) == 2
            checked.clear()
        monkeypatch.setattr(own, 'decode', broken)
        with pytest.raises(ValueError, match='the picture is not finite'):
            sample(model, conds, steps=12)
        with pytest.raises(ValueError, match=r'output is not finite .* at t = 0\.000'):
            sample(model, conds, steps=12)

    def test_a_latent_of_another_model(self, model, conds):
        with pytest.raises(ValueError, match='connect PixNerd Empty Image'):
            sample(model, conds, latent={'samples': torch.ones(1, 4, 64, 64)})

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

"""Conditionings as core's nodes mix, crop, mask and batch them, and what a recorded field makes of them."""

import pytest
import torch

from .host import TEXT_DIM, class_conditioning, import_host, require_host

require_host()
import_host()

import nodes  # noqa: E402

from comfy_nodes.nodes import PixNerdClassLabel, PixNerdDecode, PixNerdResolution  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler  # noqa: E402

from .native import empty, error, lora, noise, sample  # noqa: E402


@pytest.fixture(scope='module')
def kind():
    return 'class'


def average(to, other, strength):
    return nodes.ConditioningAverage().addWeighted(to, other, strength)[0]


class TestClasses:
    def test_zero_out_is_the_null_class(self, model, conds):
        zeroed = nodes.ConditioningZeroOut().zero_out(conds[1][0])[0]
        expected = sample(model, conds)['samples']
        assert torch.equal(sample(model, (None, (conds[1][0], zeroed)))['samples'], expected)

    @pytest.mark.parametrize('strength', [1.0, 0.3, 0.0])
    def test_average_mixes_two_classes(self, model, net, conds, strength):
        mixed = average(class_conditioning(3), class_conditioning(1), strength)
        shares = torch.tensor([[0, 1 - strength, 0, strength, 0]])
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=1.0)
        expected = solver.sample(net, noise(), shares, torch.zeros(1, 5))
        assert error(sample(model, (None, (mixed, conds[1][1])))['samples'], expected) <= 1e-4

    def test_average_with_none_weakens_a_class(self, model, conds):
        weak = average(conds[1][0], conds[1][1], 0.5)
        null, full = (sample(model, (None, (c, conds[1][1])))['samples'] for c in (conds[1][1], conds[1][0]))
        half = sample(model, (None, (weak, conds[1][1])))['samples']
        assert 0 < error(half, full) < error(null, full)

    def test_concat_is_refused_by_name(self, model, conds):
        joined = nodes.ConditioningConcat().concat(conds[1][0], conds[1][0])[0]
        with pytest.raises(ValueError, match=r'2 classes in a row \(Conditioning Concat\).*Conditioning Average'):
            sample(model, (None, (joined, conds[1][1])))

    def test_combine_averages_the_pictures(self, model, conds):
        both = nodes.ConditioningCombine().combine(class_conditioning(3), class_conditioning(1))[0]
        assert sample(model, (None, (both, conds[1][1])))['samples'].isfinite().all()

    def test_several_labels_are_those_of_the_batch(self, model, net):
        positive, null = PixNerdClassLabel.execute(model, '0\n3').args
        result = sample(model, (None, (positive, null)), batch=3)['samples']
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=1.0)
        expected = solver.sample(net, noise(batch=3), torch.tensor([0, 3, 0]), torch.tensor([5]))
        assert error(result, expected) <= 1e-4

    @pytest.mark.parametrize('index', [0, 1, 2])
    def test_they_follow_a_picture_out_of_its_batch(self, model, index):
        positive, null = PixNerdClassLabel.execute(model, '0\n3').args
        together = sample(model, (None, (positive, null)), batch=3)['samples']
        latent = nodes.LatentFromBatch().frombatch(empty(batch=3), index, 1)[0]
        alone = sample(model, (None, (positive, null)), latent=latent)['samples']
        assert error(alone, together[index : index + 1]) <= 1e-5

    def test_rebatched_pictures_keep_their_classes(self, model):
        from comfy_extras.nodes_rebatch import LatentRebatch

        positive, null = PixNerdClassLabel.execute(model, '0\n3\n1').args
        together = sample(model, (None, (positive, null)), batch=3)['samples']
        run = getattr(LatentRebatch, 'execute', None) or LatentRebatch().rebatch
        parts = run([empty(batch=3)], [2])
        parts = getattr(parts, 'args', parts)[0]
        alone = [sample(model, (None, (positive, null)), latent=part)['samples'] for part in parts]
        assert [len(part) for part in alone] == [2, 1]
        assert error(torch.cat(alone), together) <= 1e-5


def area(cond, width, height, x, y):
    return nodes.ConditioningSetArea().append(cond, width * 8, height * 8, x * 8, y * 8, 1.0)[0]


class TestAreas:
    def test_sizes_that_are_no_multiple_of_a_patch(self, model, conds):
        # Core counts areas in eighths of pixels' worth of latents; ours are pixels.
        positive = [*conds[1][0], *area(class_conditioning(1), 37, 21, 5, 3)]
        result = sample(model, (None, (positive, conds[1][1])))['samples']
        assert result.isfinite().all()
        assert error(result, sample(model, conds)['samples']) > 1e-3

    def test_an_area_has_its_share_of_a_fixed_grid(self, model, net, conds):
        """The area alone is what a picture of its size is on its share of the grid."""
        fixed = PixNerdResolution.execute(model, 'fixed tokens', 64, 0).args[0]
        grids = []
        encode = net.__class__.encode

        def spy(self, x, t, cond, token_grid=None, **kwargs):
            grids.append((tuple(x.shape[2:]), token_grid))
            return encode(self, x, t, cond, token_grid, **kwargs)

        half = area(class_conditioning(1), 96, 64, 96, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(net.__class__, 'encode', spy)
            sample(fixed, (None, ([*conds[1][0], *half], conds[1][1])), (64, 192), steps=2)
        assert set(grids) == {((64, 192), (4, 4)), ((64, 96), (4, 2))}

    def test_masks_and_ranges(self, model, conds):
        mask = torch.zeros(1, 64, 96)
        mask[..., :48] = 1
        masked = nodes.ConditioningSetMask().append(class_conditioning(1), mask, 'default', 1.0)[0]
        ranged = nodes.ConditioningSetTimestepRange().set_range(class_conditioning(1), 0.0, 0.5)[0]
        late = nodes.ConditioningSetTimestepRange().set_range(conds[1][0], 0.5, 1.0)[0]
        plain = sample(model, conds)['samples']
        for positive in ([*conds[1][0], *masked], [*ranged, *late]):
            result = sample(model, (None, (positive, conds[1][1])))['samples']
            assert result.isfinite().all()
            assert error(result, plain) > 1e-3


def test_a_hooked_lora_is_that_of_the_loader(model, net, conds):
    import comfy.hooks
    import comfy.sd

    hooks = comfy.hooks.create_hook_lora(lora(net), 1.0, 0.0)
    hooked = [comfy.hooks.set_hooks_for_conditioning(cond, hooks) for cond in conds[1]]
    plain = sample(model, conds)['samples']
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora(net), 1.0, 0)
    expected = sample(loaded, conds)['samples']
    assert error(expected, plain) > 1e-2
    assert error(sample(model, (None, hooked))['samples'], expected) <= 1e-4
    assert torch.equal(sample(model, conds)['samples'], plain)


class TestField:
    def test_regional_prompts_are_refused_by_name(self, model, conds):
        positive, negative = conds[1]
        mask = torch.ones(1, 64, 96)
        for what, cond in (
            ('an area', area(positive, 32, 32, 0, 0)),
            ('a mask', nodes.ConditioningSetMask().append(positive, mask, 'default', 1.0)[0]),
            ('a range of timesteps', nodes.ConditioningSetTimestepRange().set_range(positive, 0.5, 1.0)[0]),
            ('hooks', [[positive[0][0], {**positive[0][1], 'hooks': object()}]]),
        ):
            with pytest.raises(ValueError, match=f'record_field cannot follow {what}.*positive has'):
                sample(model, (None, (cond, negative)), record_field=True)
            with pytest.raises(ValueError, match=f'record_field cannot follow {what}.*negative has'):
                sample(model, (None, (positive, cond)), record_field=True)

    @pytest.mark.parametrize('cache', ['EasyCacheNode', 'LazyCacheNode'])
    def test_caches_are_refused_by_name(self, model, conds, cache):
        from comfy_extras import nodes_easycache

        cached = getattr(nodes_easycache, cache).execute(model, 0.2, 0.15, 0.95, False).args[0]
        with pytest.raises(ValueError, match=f"calls itself '{cache.removesuffix('Node').lower()}'"):
            sample(cached, conds, record_field=True)

    def test_what_wraps_the_model_s_calls_is_refused(self, model, conds):
        wrapped = model.clone()
        wrapped.set_model_unet_function_wrapper(lambda apply, args: apply(args['input'], args['timestep'], **args['c']))
        with pytest.raises(ValueError, match='how the model is called'):
            sample(wrapped, conds, record_field=True)

    def test_an_uncond_that_guides_nothing_is_not_recorded(self, model, conds):
        """With core's shortcut off, both halves are computed where nothing is guided."""
        slow = model.clone()
        slow.model_options['disable_cfg1_optimization'] = True
        latents = [sample(m, conds, record_field=True, guidance_start=0.3) for m in (model, slow)]
        tokens = [[len(s) for s in latent['pixnerd_field'].tokens] for latent in latents]
        assert tokens[0] == tokens[1] == [1, 1, 2, 2, 2]
        pictures = [PixNerdDecode.execute(latent, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0] for latent in latents]
        torch.testing.assert_close(*pictures, atol=1e-2, rtol=0)

    def test_it_follows_latent_from_batch(self, model, conds):
        latent = sample(model, conds, batch=3, record_field=True)
        whole = PixNerdDecode.execute(latent, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0]
        part = nodes.LatentFromBatch().frombatch(latent, 1, 2)[0]
        image = PixNerdDecode.execute(part, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0]
        torch.testing.assert_close(image, whole[1:], atol=1e-5, rtol=0)
        last = nodes.LatentFromBatch().frombatch(part, 1, 1)[0]
        image = PixNerdDecode.execute(last, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0]
        torch.testing.assert_close(image, whole[2:], atol=1e-5, rtol=0)

    def test_decode_joins_patches_at_the_sampled_size_too(self, model, conds):
        fixed = PixNerdResolution.execute(model, 'fixed tokens', 64, 0).args[0]
        fine, native = (sample(m, conds, (128, 192), record_field=True) for m in (fixed, model))

        def decode(latent, width, blend):
            return PixNerdDecode.execute(latent, width, 0, 0, 0, 0, 0, 0.0, 0, 0, -1, blend).args[0]

        for latent in (fine, native):
            sampled = ((latent['samples'] + 1) / 2).clamp(0, 1).movedim(1, -1)
            # Without a size it is the samples, like VAE Decode.
            assert torch.equal(decode(latent, 0, 1.0), sampled)
            torch.testing.assert_close(decode(latent, 192, 0.0), sampled, atol=2e-2, rtol=0)
            assert (decode(latent, 192, 1.0) - sampled).abs().max() > 0.05
        # Here pixels are nearer to a border than half a base pixel.
        assert (decode(fine, 192, 0.5) - decode(fine, 192, 0.0)).abs().max() > 0.05
        assert torch.equal(decode(native, 192, 0.5), decode(native, 0, 0.5))

    def test_decode_chooses_a_picture(self, model, conds):
        latent = sample(model, conds, batch=3, record_field=True)
        for size in (0, 192):
            whole = PixNerdDecode.execute(latent, size, 0, 0, 0, 0, 0, 0.0, 0, 0).args[0]
            one = PixNerdDecode.execute(latent, size, 0, 0, 0, 0, 0, 0.0, 0, 0, 2).args[0]
            torch.testing.assert_close(one, whole[2:], atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match='batch_index is 3, and the batch has 3'):
            PixNerdDecode.execute(latent, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 3)


class TestTexts:
    @pytest.fixture(scope='class')
    def kind(self):
        return 'text'

    @pytest.fixture
    def texts(self):
        generator = torch.Generator().manual_seed(1)
        return [[[torch.randn(1, 128, TEXT_DIM, generator=generator), {'pixnerd_text': True}]] for _ in range(2)]

    def test_too_many_tokens_are_said_as_such(self, texts, tmp_path):
        import comfy.sd

        from .host import build_net, save_net

        save_net(build_net('text'), tmp_path / 'model.safetensors')
        model = comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))
        joined = nodes.ConditioningConcat().concat(texts[0], texts[1])[0]
        with pytest.raises(ValueError, match='256 tokens of text, and this model reads 128'):
            sample(model, (None, (joined, texts[1])))
        mixed = average(texts[0], texts[1], 0.5)
        assert sample(model, (None, (mixed, texts[1])))['samples'].isfinite().all()

"""The native MODEL under core's patchers: LoRAs, small weight types, weights that are loaded in part."""

import pytest
import torch

from .host import import_host, require_host, save_net

require_host()
import_host()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402

from comfy_nodes.nodes import PixNerdDecode  # noqa: E402

from .native import error, lora, noise, reference, sample  # noqa: E402

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
            cond = conds[1][0][0][0]
            outputs.append(model.model.apply_model(x, sigma, **{key: cond[:, 0] if net.num_classes else cond}))
            assert model.model.model_lowvram == (memory < 1e30)
            model.unpatch_model(model.offload_device)
        assert error(outputs[1], outputs[0]) <= 1e-5

    def test_memory_estimates_grow_with_the_picture(self, model):
        small, large = (model.memory_required([1, 3, side, side]) for side in (512, 1024))
        assert large == pytest.approx(4 * small)

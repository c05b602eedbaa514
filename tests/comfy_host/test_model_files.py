"""The native MODEL and its files: saved, published and torn ones, and what core makes of them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from .host import CLASS_NAMES, build_net, import_host, require_host, save_net

require_host()
import_host()

import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402

from comfy_nodes.model import PixNerdModel  # noqa: E402
from comfy_nodes.nodes import PixNerdClassLabel  # noqa: E402
from comfy_nodes.weights import METADATA_TENSOR, metadata_tensor  # noqa: E402
from pixnerd_plugin.checkpoints.layouts.published import to_published  # noqa: E402

from .native import error, reference, sample  # noqa: E402


class TestFiles:
    def test_a_saved_model_comes_back_whole(self, net, conds, tmp_path):
        metadata = {'architecture': net.architecture(), 'class_names': CLASS_NAMES}
        tensors = {**net.state_dict(), METADATA_TENSOR: metadata_tensor(metadata)}
        models = []
        for name in ('first', 'second'):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / name)
            models.append(comfy.sd.load_diffusion_model_state_dict(load_file(tmp_path / name)))
            # Newer hosts gather the network's own tensors in the patcher.
            saver = models[-1] if hasattr(models[-1], 'state_dict_for_saving') else models[-1].model
            tensors = saver.state_dict_for_saving()
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
        assert positive[0][0].tolist() == [[[0, 1, 0, 0, 0]], [[0, 0, 0, 1, 0]]]
        assert null[0][0].tolist() == [[[0, 0, 0, 0, 0]]]

    def test_a_torn_file_is_an_error(self, net, tmp_path):
        tensors = net.state_dict()
        tensors.pop('blocks.1.attn.proj.bias')
        save_file(tensors, tmp_path / 'model.safetensors')
        with pytest.raises(ValueError, match=r'missing blocks\.1\.attn\.proj\.bias'):
            comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))


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

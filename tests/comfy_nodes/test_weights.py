import pytest
import torch

from comfy_nodes.weights import METADATA_TENSOR, describe, metadata_tensor, select
from pixnerd_plugin.checkpoints.layouts.names import find_prefix
from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.models.backbones import PixNerdDiT


@pytest.fixture(scope='module')
def net():
    return PixNerdDiT(
        dim=16, depth=1, num_heads=2, num_classes=4, patch_size=4, head=dict(type='NeuralFieldHead', width=8)
    )


@pytest.mark.parametrize('prefix', ['', 'model.diffusion_model.', 'ema_denoiser.', 'backbone.'])
@pytest.mark.parametrize('convert', [dict, to_published])
def test_a_network_is_found_under_any_names(net, prefix, convert):
    tensors = {prefix + name: tensor for name, tensor in convert(net.state_dict()).items()}
    assert find_prefix(tensors) == prefix
    selected = select({**tensors, 'other.weight': torch.zeros(1)} if prefix else tensors, prefix)
    assert {name: tensor.shape for name, tensor in selected.items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items()
    }
    assert describe(tensors, prefix)['architecture'] == net.architecture()


def test_other_networks_are_not_taken_for_one():
    assert find_prefix(['patch_embed.weight', 'blocks.0.attn.qkv.weight']) is None
    assert find_prefix([]) is None


def test_the_averaged_weights_come_first(net):
    published = to_published(net.state_dict())
    names = [prefix + name for prefix in ('denoiser.', 'ema_denoiser.') for name in published]
    assert find_prefix(names) == 'ema_denoiser.'


def test_metadata_travels_as_a_tensor(net):
    architecture = net.architecture()
    architecture['head'] = dict(architecture['head'], alignment='centers')
    metadata = {'architecture': architecture, 'class_names': ['猫', 'dog', 'a', 'b']}
    tensors = {**net.state_dict(), METADATA_TENSOR: metadata_tensor(metadata)}
    assert describe(tensors, '') == metadata
    assert METADATA_TENSOR not in select(tensors, '')

import pytest
import torch

from pixnerd_plugin.models.flops import forward_flops, peak_flops, training_flops
from pixnerd_plugin.registry import MODELS


def network(**kwargs):
    head = dict(type='NeuralFieldHead', width=8, depth=2)
    return MODELS.build(dict(type='PixNerdDiT', dim=64, depth=2, num_heads=4, patch_size=8, head=head, **kwargs))


def test_attention_counts_although_the_network_is_on_a_cpu():
    # Two matrix products of L x L x D each, for 64 tokens and two blocks, grow by 16 with four times the tokens.
    small, large = (forward_flops(network(num_classes=10), size) for size in (64, 128))
    attention = 2 * 2 * 2 * 64**2 * 64
    assert large - 4 * small == pytest.approx(16 * attention - 4 * attention, rel=0.15)


def test_the_network_is_left_as_it_was_and_text_networks_count_too():
    net = network(text_dim=32, text_length=8, text_depth=1).bfloat16()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert forward_flops(net, (32, 64)) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_compiled_network_is_not_compiled_for_counting(monkeypatch):
    net = network(num_classes=10)
    plain = forward_flops(net, 32)
    monkeypatch.setattr(torch, 'compile', lambda *_: lambda *_: pytest.fail('the compiled network was called'))
    net.compile()
    assert forward_flops(net, 32) == plain


def test_training_costs_three_times_the_forward_pass():
    # Two products for each one of the forward pass, but for the gradient of the picture, which nobody needs.
    net = network(num_classes=10)
    embed = 2 * 16 * (3 * 8 * 8) * 64
    assert training_flops(net, 32) == pytest.approx(3 * forward_flops(net, 32) - embed, rel=0.05)


def test_peaks_are_found_by_name():
    assert peak_flops('NVIDIA A100-SXM4-80GB') == 312e12
    assert peak_flops('NVIDIA H100 PCIe') == 756e12
    assert peak_flops('some CPU') == 0

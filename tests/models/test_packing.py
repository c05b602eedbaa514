"""Packed layers against plain ones, and every way back."""

import copy
import io
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixnerd_plugin.models.heads import neural_field
from pixnerd_plugin.models.layers import packing
from pixnerd_plugin.models.layers.packing import PackedLinear, pack, unpack
from pixnerd_plugin.registry import MODELS
from tests.golden import relative_error

pytestmark = pytest.mark.skipif(not packing.can_pack(), reason='this torch is built without oneDNN')

DIM = 256  # large enough to be worth packing

needs_bfloat16 = pytest.mark.skipif(
    not (packing.can_pack() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason='oneDNN takes no bfloat16 on this CPU',
)


def layer(bias: bool = True, dtype=torch.float32) -> tuple[nn.Sequential, torch.Tensor]:
    """One layer in a network, and its weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(DIM, 2 * DIM, bias=bias, dtype=dtype)).eval()
    return net, net[0].weight.detach().clone()


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    condition = dict(num_classes=5) if kind == 'class' else dict(text_dim=64, text_length=3, text_depth=1)
    head = dict(type='NeuralFieldHead', width=16, depth=1)
    net = MODELS.build(dict(type='PixNerdDiT', dim=DIM, depth=2, num_heads=4, patch_size=4, head=head, **condition))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    return net.eval()


@pytest.mark.parametrize(
    ('dtype', 'bound'), [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 1e-2, marks=needs_bfloat16)]
)
@pytest.mark.parametrize('bias', [True, False])
@torch.no_grad()
def test_a_packed_layer_gives_what_the_plain_one_gives_for_any_number_of_rows(dtype, bound, bias):
    net, _ = layer(bias, dtype)
    inputs = [torch.randn(*rows, DIM, dtype=dtype) for rows in ((1,), (3, 5), (64,), (257,), (2, 0))]
    inputs.append(torch.randn(DIM, 7, dtype=dtype).t())
    expected = [net(h) for h in inputs]
    assert pack(net) == 1
    for h, out in zip(inputs, expected, strict=True):
        found = net(h)
        assert found.shape == out.shape
        assert found.dtype == dtype
        assert not found.numel() or relative_error(found, out) < bound
    assert isinstance(net[0], PackedLinear)


@pytest.mark.parametrize('kind', ['class', 'text'])
@torch.no_grad()
def test_a_packed_network_gives_the_same_velocity(kind):
    net = network(kind)
    cond = torch.tensor([1, 5]) if kind == 'class' else torch.randn(2, 3, 64)
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([0.2, 0.7])
    expected = net(x, t, cond)
    assert net.pack() > 8
    assert relative_error(net(x, t, cond), expected) < 1e-5
    assert relative_error(net(x[:1], t[:1], cond[:1]), expected[:1]) < 1e-5


def test_bfloat16_stays_plain_where_onednn_refuses_it(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)
    assert pack(layer(dtype=torch.bfloat16)[0]) == 0
    assert pack(layer()[0]) == 1


@pytest.mark.parametrize(
    ('capability', 'device', 'gains'),
    [
        ('AVX512', 'cpu', True),
        ('AVX2', 'cpu', True),
        ('DEFAULT', 'cpu', False),
        ('SVE256', 'cpu', False),
        ('AVX512', 'meta', False),
    ],
)
def test_packing_is_the_default_on_cpus_with_avx2_or_avx512(monkeypatch, capability, device, gains):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    assert packing.gains_by_packing(torch.device(device)) == gains


@torch.no_grad()
def test_a_packed_generator_gives_fewer_patches_at_once_and_the_same_field(monkeypatch):
    net = network('class')
    arguments = torch.randn(1, 3, 12, 12), torch.tensor([0.3]), torch.tensor([2])
    expected = net(*arguments)
    net.pack()
    rows = []
    net.head.generator.register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
    monkeypatch.setattr(neural_field, 'GENERATED_BYTES_PACKED', 4 * 4 * net.head.generator.out_features)
    assert relative_error(net(*arguments), expected) < 1e-5
    assert rows == [4, 4, 1]


def test_the_packed_copy_takes_the_place_of_the_plain_one():
    net, plain = layer()
    parameter = net[0].weight
    pack(net)
    assert parameter.untyped_storage().nbytes() == parameter.element_size()
    assert next(net.parameters()) is parameter
    assert (parameter.shape, parameter.dtype) == (plain.shape, plain.dtype)
    # Whoever reads it past the layer gets no number that looks like a weight.
    assert parameter.isnan().all()


WAYS_BACK = dict(
    train=lambda net: net.train(),
    to=lambda net: net.to(torch.float64),
    state_dict=lambda net: net.state_dict(),
    load_state_dict=lambda net: net.load_state_dict(dict(net.named_parameters(), **{'0.weight': torch.ones(512, 256)})),
    attribute=lambda net: net[0].weight,
    parameter=lambda net: net.get_parameter('0.weight'),
    deepcopy=copy.deepcopy,
    pickle=pickle.dumps,
    save=lambda net: torch.save(net, io.BytesIO()),
    unpack=unpack,
)


@pytest.mark.parametrize('way', WAYS_BACK)
def test_every_way_back_gives_the_plain_weight(way):
    net, plain = layer()
    parameter = net[0].weight
    pack(net)
    WAYS_BACK[way](net)
    assert type(net[0]) is nn.Linear
    assert net[0].weight is parameter
    assert parameter.requires_grad
    expected = torch.ones(512, 256) if way == 'load_state_dict' else plain
    assert torch.equal(parameter.detach().float(), expected)


def test_copies_of_a_packed_network_are_plain_and_whole():
    net, plain = layer()
    pack(net)
    copied = copy.deepcopy(net)
    assert type(copied[0]) is nn.Linear
    assert torch.equal(copied[0].weight, plain)
    assert list(copied[0].__dict__) == list(net[0].__dict__)


def test_gradients_autocast_and_other_weights_are_those_of_the_plain_layer():
    net, plain = layer()
    h = torch.randn(3, DIM)
    pack(net)
    other = {'0.weight': torch.ones_like(plain)}
    with torch.no_grad():
        changed = torch.func.functional_call(net, other, h)
        assert relative_error(changed, nn.functional.linear(h, other['0.weight'], net[0].bias)) < 1e-6
        assert torch.equal(other['0.weight'], torch.ones_like(plain))
        with torch.autocast('cpu', torch.bfloat16):
            assert net(h).dtype == torch.bfloat16
    pack(net)
    net(h).sum().backward()
    assert relative_error(net[0].weight.grad, h.sum(0).expand_as(plain)) < 1e-5


def test_packed_in_inference_mode_it_can_still_be_trained():
    net, _ = layer()
    with torch.inference_mode():
        pack(net)
        net(torch.randn(2, DIM))
    net.train()
    net(torch.randn(2, DIM)).sum().backward()
    assert net[0].weight.grad.isfinite().all()


def test_a_network_in_training_is_not_packed():
    net, _ = layer()
    with pytest.raises(ValueError, match=r'call eval\(\) first'):
        pack(net.train())


def test_small_and_foreign_layers_are_left_alone():
    class Foreign(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(8, 8), Foreign(DIM, DIM), nn.Linear(DIM, DIM, dtype=torch.float64)).eval()
    assert pack(net) == 0


def test_lora_on_a_packed_network():
    pytest.importorskip('peft')
    from pixnerd_plugin.models.lora import add_lora

    net, cond = network('class'), torch.tensor([1])
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        expected = net(x, t, cond)
        net.pack()
        add_lora(net, rank=2)
        assert relative_error(net(x, t, cond), expected) < 1e-5
    net.train()
    net(x, t, cond).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_a_compiled_network_is_not_packed():
    net = network('class')
    net.pack()
    net.compile(backend='eager')
    assert not any(isinstance(layer, PackedLinear) for layer in net.modules())
    assert net.pack() == 0


@pytest.mark.parametrize('gains', [True, False])
def test_a_pipeline_packs_where_it_gains_and_again_after_what_unpacks(monkeypatch, tmp_path, gains):
    from pixnerd_plugin import load_pipeline, pipeline

    monkeypatch.setattr(pipeline, 'gains_by_packing', lambda device: gains)
    net = network('class')
    save_file(
        net.state_dict(), tmp_path / 'net.safetensors', {'pixnerd': json.dumps(dict(architecture=net.architecture()))}
    )
    pipe, plain = (load_pipeline(tmp_path / 'net.safetensors', device='cpu', packs=packs) for packs in (None, False))
    expected = plain.sample([1], [0], 8, sampler=plain.sampler.replace(num_steps=2))
    for _ in range(2):
        found = pipe.sample([1], [0], 8, sampler=pipe.sampler.replace(num_steps=2))
        assert relative_error(found, expected) < 1e-5
        assert any(isinstance(layer, PackedLinear) for layer in pipe.net.modules()) == gains
        pipe.net.state_dict()
    assert not any(isinstance(layer, PackedLinear) for layer in plain.net.modules())

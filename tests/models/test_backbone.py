"""The network against the published implementation, and what must hold for any weights."""

import pytest
import torch
from torch import nn

from pixnerd_plugin.models.heads import neural_field
from pixnerd_plugin.registry import MODELS
from tests.golden import network, read, relative_error


def build(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    settings = dict(
        dim=32, depth=2, num_heads=4, patch_size=4, num_classes=5, head=dict(type='NeuralFieldHead', width=8)
    )
    net = MODELS.build(dict(type='PixNerdDiT', **{**settings, **kwargs}))
    # The head starts at zero velocity, which would hide everything else.
    nn.init.normal_(net.head.proj.weight, std=0.2)
    return net


@pytest.fixture(scope='module')
def c2i():
    return network('c2i_tiny'), read('c2i_tiny')


@pytest.fixture(scope='module')
def t2i():
    return network('t2i_tiny'), read('t2i_tiny')


@torch.no_grad()
def test_class_network_is_the_published_one(c2i):
    net, golden = c2i
    assert relative_error(net(golden['x'], golden['t'], golden['y']), golden['v']) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('layer', [1, 2, 3])
def test_tokens_after_each_block_are_the_published_ones(c2i, layer):
    net, golden = c2i
    _, features = net.encode(golden['x'], golden['t'], golden['y'], feature_layer=layer)
    assert relative_error(features, golden[f'tokens.block{layer - 1}']) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('size', ['64x64', '128x128', '96x64', '32x48'])
def test_text_network_at_other_sizes_is_the_published_one(t2i, size):
    net, golden = t2i
    v = net(golden[f'x.{size}'], golden['t'], golden['text_embeds'], token_grid=(4, 4))
    assert relative_error(v, golden[f'v.{size}']) < 1e-5


@torch.no_grad()
def test_text_network_on_a_grid_that_is_not_square_is_the_published_one(t2i):
    net, golden = t2i
    v = net(golden['x.native48x80'], golden['t'], golden['text_embeds'])
    assert relative_error(v, golden['v.native48x80']) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('chunk', [1, 5, 16, 100, 10**6])
def test_field_in_chunks_equals_the_whole(c2i, chunk):
    net, golden = c2i
    whole = net(golden['x'], golden['t'], golden['y'], field_chunk=10**9)
    assert relative_error(net(golden['x'], golden['t'], golden['y'], field_chunk=chunk), whole) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize('patches', [1, 3])
def test_field_weights_from_several_products_equal_those_from_one(c2i, monkeypatch, patches):
    net, golden = c2i
    whole = net(golden['x'], golden['t'], golden['y'])
    generated = []
    monkeypatch.setattr(neural_field, 'GENERATED_BYTES', patches * net.head.generator.out_features * 4)
    with net.head.generator.register_forward_hook(lambda layer, inputs, output: generated.append(len(output))):
        v = net(golden['x'], golden['t'], golden['y'])
    assert len(generated) > 1
    assert max(generated) == patches
    assert relative_error(v, whole) < 1e-6


@pytest.mark.parametrize(
    ('config', 'parameters'),
    [
        (
            dict(dim=1024, depth=22, num_heads=16, num_classes=1000, head=dict(type='NeuralFieldHead', depth=2)),
            452_113_795,
        ),
        (
            dict(dim=1152, depth=26, num_heads=16, num_classes=1000, head=dict(type='NeuralFieldHead', depth=4)),
            700_589_219,
        ),
        (
            dict(dim=1536, depth=16, num_heads=24, text_dim=2048, head=dict(type='NeuralFieldHead', normalize='fc1')),
            1_171_518_019,
        ),
    ],
)
def test_published_sizes(config, parameters):
    with torch.device('meta'):
        net = MODELS.build(dict(type='PixNerdDiT', patch_size=16, **config))
    assert sum(p.numel() for p in net.parameters()) == parameters


@torch.no_grad()
def test_fixed_tokens_at_the_trained_size_change_nothing():
    net, x, t, cond = build(), torch.randn(2, 3, 8, 12), torch.rand(2), torch.tensor([0, 5])
    assert torch.equal(net(x, t, cond, token_grid=(2, 3)), net(x, t, cond))


@torch.no_grad()
def test_class_network_takes_other_sizes_on_fixed_tokens():
    net, x = build(), torch.randn(1, 3, 20, 18)
    assert net(x, torch.rand(1), torch.tensor([1]), token_grid=(2, 3)).shape == x.shape


@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix():
    net, x, t, cond = build(), torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 3, 5])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, cond), alone)


@pytest.mark.parametrize('checkpoint', [False, True])
@pytest.mark.parametrize('condition', ['class', 'text'])
def test_gradients_reach_every_parameter_and_are_finite(condition, checkpoint):
    if condition == 'class':
        net, cond = build(checkpoint=checkpoint), torch.tensor([0, 4])
    else:
        net = build(num_classes=None, text_dim=6, text_length=3, text_depth=1, checkpoint=checkpoint)
        cond = torch.randn(2, 3, 6)
    net(torch.randn(2, 3, 8, 12), torch.rand(2), cond).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_recomputed_activations_give_the_same_gradients():
    x, t, cond = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 4])
    gradients = []
    for checkpoint in (False, True):
        net = build(checkpoint=checkpoint)
        net(x, t, cond).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(*gradients)


def test_architecture_rebuilds_the_network():
    net = build()
    again = MODELS.build(net.architecture())
    again.load_state_dict(net.state_dict())
    assert again.architecture() == net.architecture()


def test_training_starts_at_zero_velocity():
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5))
    assert not net(torch.randn(1, 3, 8, 8), torch.rand(1), torch.tensor([0])).any()


def test_layers_and_attention_can_be_supplied():
    made, calls = [], []

    class Operations:
        @staticmethod
        def Linear(*args, **kwargs):
            made.append('Linear')
            return nn.Linear(*args, **kwargs)

        RMSNorm, Embedding = nn.RMSNorm, nn.Embedding

    def attention(q, k, v):
        calls.append(q.shape)
        return nn.functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    net = build(operations=Operations, attention=attention)
    x, t, cond = torch.randn(1, 3, 8, 12), torch.rand(1), torch.tensor([0])
    torch.testing.assert_close(net(x, t, cond), build()(x, t, cond))
    assert calls == [(1, 4, 6, 8)] * 2
    linears = sum(isinstance(module, nn.Linear) for module in net.modules())
    assert len(made) == linears


@pytest.mark.parametrize(
    ('x', 'cond', 'kwargs', 'message'),
    [
        ((1, 3, 10, 8), [0], {}, '10x8'),
        ((1, 3, 8, 8), [0], dict(token_grid=(3, 2)), '3x2'),
        ((1, 1, 8, 8), [0], {}, 'x must be'),
        ((2, 3, 8, 8), [0], {}, 'class ids'),
        ((1, 3, 8, 8), [[0.0]], {}, 'class ids'),
        ((1, 3, 8, 8), [0], dict(token_grid=(0, 4)), r'token_grid=\(0, 4\)'),
        ((1, 3, 8, 8), [6], {}, 'class 6 is out of range: this model has classes 0 to 4'),
        ((1, 3, 8, 8), [-1], {}, 'class -1 is out of range'),
    ],
)
def test_inputs_that_do_not_fit_are_named(x, cond, kwargs, message):
    net = build()
    for call in (net, net.encode):
        with pytest.raises(ValueError, match=message):
            call(torch.randn(x), torch.rand(x[0]), torch.tensor(cond), **kwargs)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match='feature_layer=3'):
        build().encode(torch.randn(1, 3, 8, 8), torch.rand(1), torch.tensor([0]), feature_layer=3)


def test_forward_is_encode_then_decode():
    net = build()
    nn.init.normal_(net.head.proj.weight)
    x, t, cond = torch.randn(2, 3, 16, 8), torch.rand(2), torch.tensor([0, 4])
    s, features = net.encode(x, t, cond, (2, 1))
    assert features is None
    assert torch.equal(net.decode(s, x, (2, 1)), net(x, t, cond, (2, 1)))
    with pytest.raises(ValueError, match='multiples of the token grid 3x1'):
        net.decode(s, x, (3, 1))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(text_dim=4), 'either num_classes or text_dim'),
        (dict(num_heads=3), 'num_heads=3'),
        (dict(position_rule='diagonal'), 'diagonal'),
        (dict(head=dict(type='NeuralFieldHead', coordinates='polar')), 'polar'),
        (dict(head=dict(type='NeuralFieldHead', normalize='fc3')), 'fc3'),
        (dict(head=dict(type='NeuralFieldHead', alignment='middle')), 'middle'),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)

"""What a host may do in one call of the backbone, and conditions that are shares of classes."""

import pytest
import torch

from pixnerd_plugin.models.backbones import PixNerdDiT
from pixnerd_plugin.models.backbones.hooks import Hooks
from pixnerd_plugin.models.layers.attention import scaled_dot_product_attention

X = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.7])


@pytest.fixture(params=['class', 'text'])
def net(request):
    torch.manual_seed(1)
    condition = dict(num_classes=3) if request.param == 'class' else dict(text_dim=6, text_length=5, text_depth=1)
    head = dict(type='NeuralFieldHead', width=4, depth=1, num_frequencies=4)
    net = PixNerdDiT(dim=16, depth=2, num_heads=2, patch_size=4, head=head, **condition)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def condition(net):
    return torch.tensor([0, 3]) if net.text_dim is None else torch.linspace(-1, 1, 60).view(2, 5, 6)


class Recording(Hooks):
    def __init__(self, scale=1.0):
        self.calls, self.attended, self.scale = [], 0, scale

    def positions(self, x, y):
        return x * self.scale, y

    def run(self, block, index, h, modulation, rotate=None, text=None):
        self.calls.append(index)

        def attention(q, k, v):
            self.attended += 1
            return scaled_dot_product_attention(q, k, v)

        return block(h, modulation, rotate, text, attention)


def test_they_see_every_block_and_change_nothing(net):
    hooks = Recording()
    s, _ = net.encode(X, T, condition(net), hooks=hooks)
    assert torch.equal(s, net.encode(X, T, condition(net))[0])
    assert hooks.calls == ([] if net.text_dim is None else [None]) + [0, 1]
    assert hooks.attended == len(hooks.calls)
    assert torch.equal(net.encode(X, T, condition(net), hooks=Hooks())[0], s)


def test_they_move_the_tokens(net):
    moved, _ = net.encode(X, T, condition(net), hooks=Recording(scale=3.0))
    assert (moved - net.encode(X, T, condition(net))[0]).abs().max() > 1e-3


class TestShares:
    @pytest.fixture
    def net(self):
        torch.manual_seed(1)
        net = PixNerdDiT(dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, head=dict(type='LinearHead'))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return net.eval()

    def test_one_class_and_none_are_those_by_number(self, net):
        shares = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        torch.testing.assert_close(net(X, T, shares), net(X, T, torch.tensor([1, 3])))

    def test_a_mix_is_that_of_the_embeddings(self, net):
        mixed = net(X, T, torch.tensor([[0.25, 0.5, 0.0]] * 2))
        with torch.no_grad():
            table = net.label_embed.weight
            table[2] = 0.25 * table[0] + 0.5 * table[1] + 0.25 * table[3]
        torch.testing.assert_close(mixed, net(X, T, torch.tensor([2, 2])))

    @pytest.mark.parametrize('shape', [(2, 4), (1, 3), (2, 3, 1)])
    def test_other_shapes_are_refused(self, net, shape):
        with pytest.raises(ValueError, match=r'shares of its classes \(2, 3\)'):
            net(X, T, torch.zeros(shape))

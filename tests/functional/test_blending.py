import pytest
import torch
from torch import nn

from pixnerd_plugin.functional.blending import Lattice, blend_fields, cover
from pixnerd_plugin.functional.patches import to_patches
from pixnerd_plugin.registry import MODELS


def lattice(pixels, patches=3, patch_size=4, alignment='centers', blend=0.5):
    return Lattice(pixels, patches, patch_size, alignment, blend)


def constant_fields(s, pixels, positions):
    """Fields that are a number each, whatever the pixel."""
    return s[:, :, None, None, :].expand(pixels.shape).clone()


def profile(axis, start=0, stop=None, **options):
    """What fields of 0, 1, 2, ... give along an axis."""
    axis = lattice(axis, **options)
    stop = axis.pixels if stop is None else stop
    one = cover(lattice(1, 1), 0, 1)
    s = torch.arange(float(axis.patches)).view(1, -1, 1)
    x = torch.zeros(1, 1, 1, stop - start)
    return blend_fields(constant_fields, s, x, one, cover(axis, start, stop), axis.patches)[0, 0, 0]


def test_weights_rise_along_a_line_around_each_border():
    # 4 pixels a base pixel: centres 1/8, 3/8, 5/8, 7/8 base pixels from the border on both sides.
    assert profile(48)[12:20].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    expected = [0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]
    assert profile(48, blend=1.0)[12:20].tolist() == expected


@pytest.mark.parametrize('pixels', [12, 6, 4])
def test_half_a_base_pixel_touches_nothing_at_the_sampled_size_or_below(pixels):
    assert torch.equal(profile(pixels), profile(pixels, blend=0.0))


def test_a_pixel_on_a_border_has_half_of_each():
    # 9 pixels over 2 patches: the fifth has its centre on the border.
    assert profile(9, patches=2)[4] == 0.5
    assert profile(9, patches=2, blend=0.0)[4] == 1


@pytest.mark.parametrize('pixels', [48, 29, 100, 7])
@pytest.mark.parametrize('blend', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('patch_size', [2, 5])
def test_a_run_is_part_of_the_whole(pixels, blend, patch_size):
    options = dict(blend=blend, patch_size=patch_size)
    whole = profile(pixels, **options)
    for start in range(0, pixels, 3):
        for stop in range(start + 1, pixels + 1, 4):
            assert torch.equal(profile(pixels, start, stop, **options), whole[start:stop])


def test_cuts_come_behind_the_joins_and_keep_the_limit():
    axis = lattice(48)
    # Borders at 16 and 32, and two pixels behind each have a share of the field before.
    assert axis.cut(0, 48, 32) == [(0, 34), (34, 48)]
    assert axis.cut(5, 47, 20) == [(5, 18), (18, 34), (34, 47)]
    assert axis.cut(0, 25, 7) == [(0, 7), (7, 14), (14, 18), (18, 25)]
    assert axis.cut(3, 48, 100) == [(3, 48)]


@pytest.mark.parametrize('alignment', ['centers', 'corners'])
def test_a_whole_axis_is_evaluated_as_one(alignment):
    (windows,) = cover(lattice(48, alignment=alignment), 0, 48).windows
    assert windows.patches.tolist() == [0, 1, 2]
    assert len(windows.pixels) == 3 * (16 + 2 * 2)
    steps = windows.positions.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, steps[0].item()))


@pytest.fixture(scope='module', params=['centers', 'corners'])
def net(request):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=8, alignment=request.param)
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, head=head))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    return net


@torch.no_grad()
def test_a_network_joins_its_fields_when_asked(net):
    x, t, cond = torch.randn(2, 3, 16, 24), torch.tensor([0.2, 0.7]), torch.tensor([1, 5])
    hard, blended = (net(x, t, cond, token_grid=(2, 3), blend=blend) for blend in (0.0, 0.5))
    difference = to_patches((hard - blended).abs(), (2, 3)).amax((0, 1, 4))
    # Pixels of half a base pixel: only the outermost of a patch are nearer than half a base pixel to a border.
    assert difference[1:-1, 1:-1].max() < 1e-5
    assert difference[0].min() > 1e-3
    assert difference[:, -1].min() > 1e-3
    assert torch.equal(net(x, t, cond, blend=0.5), net(x, t, cond))


def test_gradients_flow_through_the_join(net):
    x, t, cond = torch.randn(1, 3, 16, 16), torch.tensor([0.2]), torch.tensor([1])
    s, _ = net.encode(x, t, cond, (2, 2))
    net.decode(s, x, (2, 2), blend=0.5).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.head.parameters())


def test_heads_that_are_no_fields_are_refused():
    head = dict(type='LinearHead')
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, head=head))
    with pytest.raises(ValueError, match=r'blend=0.5 joins neural fields, and this head is a LinearHead; use blend=0'):
        net(torch.randn(1, 3, 8, 8), torch.tensor([0.2]), torch.tensor([1]), blend=0.5)

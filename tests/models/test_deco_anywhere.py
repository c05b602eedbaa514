"""DeCo between base pixels: its map interpolated over the whole picture, through every way there is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixnerd_plugin.functional.seams import seam_ratio
from pixnerd_plugin.models.losses import FlowMatchREPALoss
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler, FieldTrajectory
from tests.golden import relative_error

COND, NULL = torch.tensor([1, 2]), torch.tensor([5])


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    head = dict(type='DeCoHead', width=8, depth=2)
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, head=head))
    for parameter in net.head.parameters():
        nn.init.normal_(parameter, std=0.4)
    return net


def record(net, size=(8, 12), sampler=None, **more):
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    sampler = sampler or AdamsFlowSampler(3)
    return sampler.sample(net, noise, COND, NULL, record_field=True, field_dtype=torch.float32, **more)


def test_at_the_base_pixels_it_is_the_published_head(net):
    image, field = record(net)
    assert relative_error(field.decode(), image) < 1e-5
    assert torch.equal(field.decode(blend=0), field.decode(blend=1))


def test_between_them_conditions_and_coordinates_are_those_of_torch_s_bilinear(net):
    """The map over the whole picture, resized by torch, centre-aligned; one evaluation of the decoder on top."""
    head, grid, size = net.head, (2, 3), (22, 30)
    s, pixels = torch.randn(2, 6, 32), torch.randn(2, 3, *size)

    def over_the_picture(values):  # (B, L, P, P, W) to (B, W, H, W)
        return values.unflatten(1, grid).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    with torch.no_grad():
        conditions = over_the_picture(head.cond_embed(s).view(2, 6, 4, 4, 8))
        table = over_the_picture(head._table(pixels).expand(2, 6, -1, -1, -1))
        cond, place = (
            F.interpolate(each, size=size, mode='bilinear', align_corners=False).movedim(1, -1)
            for each in (conditions, table)
        )
        expected = head._decode(pixels.movedim(1, -1), place, F.silu(cond)).movedim(-1, 1)
        y, x = ((torch.arange(n) + 0.5) * base / n - 0.5 for n, base in zip(size, (8, 12), strict=True))
        for chunk in (None, 50):
            assert relative_error(head.over_picture(s, pixels, grid, y, x, chunk), expected) < 1e-5
    assert relative_error(head.over_picture(s, pixels, grid, y, x), expected) < 1e-5


@pytest.mark.parametrize('size', [(16, 24), (13, 29), (5, 7)])
@pytest.mark.parametrize('grain', [0.0, 0.4])
def test_regions_and_tiles_are_the_same_pixels_of_the_whole(net, size, grain):
    _, field = record(net)
    whole = field.decode(size, grain=grain, seed=3)
    top, left, bottom, right = size[0] // 4, size[1] // 3, size[0] - 1, size[1] - 1
    region = field.decode(size, (top, left, bottom, right), grain=grain, seed=3, chunk=17)
    assert relative_error(region, whole[:, :, top:bottom, left:right]) < 1e-5
    again = torch.zeros_like(whole)
    for (top, left, bottom, right), pixels in field.tiles(size, 6, grain=grain, seed=3):
        again[:, :, top:bottom, left:right] = pixels
    assert relative_error(again, whole) < 1e-5


def test_there_are_no_seams(net):
    _, field = record(net)
    fine = field.decode((8 * 16, 12 * 16))
    assert seam_ratio(fine, field.token_grid) < 1.5


def test_a_fixed_token_grid_draws_finer_pictures_and_its_field_agrees(net):
    image, field = record(net, (16, 18), token_grid=(2, 3))
    assert relative_error(field.decode(), image) < 1e-5
    # Blending joins neural fields; here it changes nothing.
    again, _ = record(net, (16, 18), token_grid=(2, 3), blend=0.5)
    assert relative_error(again, image) < 1e-5
    chunked, _ = record(net, (16, 18), token_grid=(2, 3), field_chunk=40)
    assert relative_error(chunked, image) < 1e-5


def test_files_keep_it(net, tmp_path):
    _, field = record(net, sampler=EulerFlowSampler(2, guidance=dict(type='CFGZeroStar')))
    field.save(tmp_path / 'field.safetensors')
    loaded = FieldTrajectory.load(tmp_path / 'field.safetensors')
    assert torch.equal(loaded.decode((16, 24)), field.decode((16, 24)))


def test_it_trains_between_base_pixels_too(net):
    loss = FlowMatchREPALoss(align_layer=1, dim=32, projector_dim=8, teacher_dim=4, max_density=4)
    net.zero_grad()
    loss(net, torch.randn(2, 3, 32, 48), COND, NULL)['loss_flow'].backward()
    assert net.head.cond_embed.weight.grad.any()
    # Positions of the base pixels are no other than none at all.
    s, x, own = torch.randn(1, 6, 32), torch.randn(1, 3, 8, 12), torch.linspace(0, 1, 4)
    assert relative_error(net.decode(s, x, (2, 3), (own, own)), net.decode(s, x, (2, 3))) < 1e-5


def test_it_trains_between_base_pixels_under_autocast(net):
    torch.manual_seed(0)
    loss = FlowMatchREPALoss(align_layer=1, dim=32, projector_dim=8, teacher_dim=4, max_density=2, overlap=1.0)
    given = dict(noise=torch.randn(2, 3, 8, 12), t=torch.tensor([0.3, 0.8]), drop_mask=torch.zeros(2, dtype=torch.bool))
    images = torch.randn(2, 3, 16, 24)
    each = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            each.append(loss(net, images, COND, NULL, **given)['loss_flow'])
    torch.testing.assert_close(each[1], each[0], rtol=0.03, atol=0.0)


def test_what_does_not_fit_is_named(net):
    _, field = record(net)
    with pytest.raises(ValueError, match="DeCoHead knows alignment='centers' alone, not 'corners'"):
        field.decode(alignment='corners')
    with pytest.raises(ValueError, match='blend=2 must be from 0 to 1 base pixels'):
        field.decode(blend=2)

import pytest
import torch
from torch import nn

from pixnerd_plugin.functional.noise import continuous_noise, grain_noise
from pixnerd_plugin.functional.seams import seam_ratio
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler, FieldTrajectory, HeunFlowSampler
from pixnerd_plugin.sampling.guidance import guide
from tests.golden import relative_error

SAMPLERS = [AdamsFlowSampler(4), EulerFlowSampler(3), HeunFlowSampler(3)]


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=8, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=2, num_heads=4, patch_size=4, num_classes=5, head=head))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    return net


def record(net, sampler=SAMPLERS[0], size=(8, 12), **kwargs):
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    settings = dict(record_field=True, field_dtype=torch.float32)
    return sampler.sample(net, noise, torch.tensor([1, 2]), torch.tensor([5]), **{**settings, **kwargs})


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_decoding_at_the_sampled_size_gives_the_sampled_image(net, sampler):
    image, field = record(net, sampler)
    assert relative_error(field.decode(), image) < 1e-5


@pytest.mark.parametrize('blend', [0.0, 0.5, 1.0])
def test_decoding_after_fixed_token_sampling_gives_the_sampled_image(net, blend):
    image, field = record(net, size=(16, 18), token_grid=(2, 3), blend=blend)
    assert relative_error(field.decode(blend=blend), image) < 1e-5


@pytest.mark.parametrize('size', [(16, 24), (24, 36), (13, 29), (5, 7)])
@pytest.mark.parametrize(('grain', 'blend'), [(0.0, 0.5), (0.4, 0.5), (0.0, 0.0), (0.0, 0.8)])
def test_a_region_is_the_same_pixels_of_the_whole(net, size, grain, blend):
    _, field = record(net)
    whole = field.decode(size, grain=grain, seed=3, blend=blend)
    top, left, bottom, right = size[0] // 4, size[1] // 3, size[0] - 1, size[1] - 1
    region = field.decode(size, (top, left, bottom, right), grain=grain, seed=3, chunk=17, blend=blend)
    assert relative_error(region, whole[:, :, top:bottom, left:right]) < 1e-5


@pytest.mark.parametrize('alignment', ['centers', 'corners'])
def test_half_a_pixel_of_blending_leaves_the_sampled_size_as_it_is_to_the_bit(net, alignment):
    _, field = record(net)
    hard = field.decode(alignment=alignment, blend=0)
    assert torch.equal(field.decode(alignment=alignment), hard)
    assert not torch.equal(field.decode(alignment=alignment, blend=0.6), hard)


@torch.no_grad()
def every_field_everywhere(field, size, blend, alignment='centers'):
    """Decode by evaluating every patch's field on the whole picture, and weighting by hat functions of the plane."""
    height, width = field.size
    patch_size = field.head.patch_size

    def axis(pixels, base, patches):
        u = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (base / pixels)
        p = torch.arange(patches)[:, None]
        rise, fall = 0.5 + (u - p * patch_size) / (2 * blend), 0.5 + ((p + 1) * patch_size - u) / (2 * blend)
        rise[0], fall[-1] = 1, 1
        weights = torch.minimum(rise, fall).clamp(0, 1)
        inside = u - p * patch_size
        if alignment == 'centers':
            return u - 0.5, weights.float(), ((inside - 0.5) / (patch_size - 1)).float()
        num = pixels // patches
        return u - 0.5, weights.float(), ((inside * num / patch_size - 0.5) / (num - 1)).float()

    rows = axis(size[0], height, field.token_grid[0])
    columns = axis(size[1], width, field.token_grid[1])
    tokens = iter(field.tokens)

    def velocity(x, t):
        branches = []
        for s in next(tokens):
            v = torch.zeros_like(x)
            for index, patch in enumerate(s.unbind(1)):
                r, c = divmod(index, field.token_grid[1])
                own = field.head(patch[:, None], x.movedim(1, -1)[:, None], (rows[2][r], columns[2][c]))
                v += rows[1][r][:, None] * columns[1][c] * own[:, 0].movedim(-1, 1)
            branches.append(v)
        return branches[0] if len(branches) == 1 else guide(*branches, field.sampler.guidance_scale)

    return field.sampler.integrate(velocity, continuous_noise(field.noise, rows[0], columns[0]))


@pytest.mark.parametrize('sampler', SAMPLERS[:2])
@pytest.mark.parametrize('size', [(24, 36), (11, 29), (5, 7)])
@pytest.mark.parametrize('blend', [0.5, 1.0, 0.2])
def test_blending_is_the_weighted_mean_of_all_fields(net, sampler, size, blend):
    _, field = record(net, sampler)
    expected = every_field_everywhere(field, size, blend)
    assert relative_error(field.decode(size, blend=blend), expected) < 1e-5
    assert relative_error(field.decode(size, blend=blend, chunk=23), expected) < 1e-5


def test_blending_knows_corner_aligned_coordinates(net):
    _, field = record(net, size=(16, 16))
    expected = every_field_everywhere(field, (48, 64), 0.5, 'corners')
    assert relative_error(field.decode((48, 64), alignment='corners'), expected) < 1e-5


def test_a_blended_picture_has_no_step_where_fields_meet(net):
    _, field = record(net)
    size = (8 * 32, 12 * 32)
    hard, blended = (seam_ratio(field.decode(size, blend=blend), field.token_grid) for blend in (0, 0.5))
    assert hard > 10
    assert blended < hard / 5


def test_tiles_make_up_the_whole(net):
    _, field = record(net)
    out = torch.zeros(2, 3, 20, 30)
    for (top, left, bottom, right), pixels in field.tiles((20, 30), 7):
        out[:, :, top:bottom, left:right] = pixels
    assert relative_error(out, field.decode((20, 30))) < 1e-5
    regions = [part for part, _ in field.tiles((20, 30), 7, (3, 5, 12, 19))]
    assert regions == [(3, 5, 10, 12), (3, 12, 10, 19), (10, 5, 12, 12), (10, 12, 12, 19)]


def test_one_picture_of_the_batch_decodes_as_in_it(net):
    _, field = record(net)
    one = field.picture(1).to('cpu')
    assert relative_error(one.decode((16, 24)), field.decode((16, 24))[1:]) < 1e-5
    with pytest.raises(ValueError, match='picture 2'):
        field.picture(2)


def test_moving_the_field_leaves_the_network_where_it_is(net):
    _, field = record(net)
    assert next(field.to('meta').head.parameters()).is_meta
    assert not next(net.head.parameters()).is_meta


def test_sizes_agree_where_their_pixels_share_a_centre(net):
    _, field = record(net)
    # Noise and coordinates are the same there, so the picture is one function of the plane.
    assert relative_error(field.decode((24, 36))[:, :, 1::3, 1::3], field.decode()) < 1e-5


def test_corner_alignment_refuses_sizes_that_do_not_divide(net):
    _, field = record(net)
    assert field.decode((16, 24), alignment='corners').shape == (2, 3, 16, 24)
    with pytest.raises(ValueError, match='multiple'):
        field.decode((13, 24), alignment='corners')


def test_both_trajectories_can_be_asked_for(net):
    image, trajectory, field = record(net, return_trajectory=True)
    assert trajectory.shape == (5, *image.shape)
    assert isinstance(field, FieldTrajectory)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(region=(0, 0, 9, 12)), 'region'),
        (dict(region=(4, 4, 4, 8)), 'region'),
        (dict(grain=1.5), 'grain'),
        (dict(blend=-0.1), 'blend=-0.1'),
        (dict(blend=1.1), 'blend=1.1 must be from 0'),
        (dict(blend=float('nan')), 'blend=nan'),
    ],
)
def test_arguments_out_of_range_are_named(net, kwargs, message):
    _, field = record(net)
    with pytest.raises(ValueError, match=message):
        field.decode(**kwargs)


def test_only_a_deterministic_field_can_be_recorded(net):
    with pytest.raises(ValueError, match='deterministic'):
        record(net, EulerFlowSampler(3, stochastic=True))
    linear = MODELS.build(
        dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, head=dict(type='LinearHead'))
    )
    with pytest.raises(ValueError, match='LinearHead'):
        record(linear)


def test_a_field_keeps_the_limit_of_its_noise_between_pixels_too(net, tmp_path):
    image, field = record(net, AdamsFlowSampler(4, noise_limit=1.0))
    assert relative_error(field.decode(), image) < 1e-5
    field.save(tmp_path / 'field.safetensors')
    loaded = FieldTrajectory.load(tmp_path / 'field.safetensors')
    still = EulerFlowSampler(1, guidance_scale=1.0, noise_limit=1.0)
    for each in (field, loaded):
        assert each.sampler.noise_limit == 1.0
    # A solver over no time gives the noise itself.
    still.times = [0.0, 0.0]
    fine = FieldTrajectory(net.head, still, 5 * field.noise, field.token_grid, field.tokens[:1]).decode((24, 36))
    assert fine.abs().max() == 1


def test_decoding_reports_progress(net):
    _, field = record(net)
    seen = []
    field.decode((16, 24), chunk=50, callback=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16 * 24, 16 * 24)
    assert len(seen) > 3


def test_continuous_noise_is_standard_normal_and_smooth():
    noise = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    position = torch.arange(0.0, 199, 0.25)
    fine = continuous_noise(noise, position, position)[0, 0]
    assert fine.mean().item() == pytest.approx(0, abs=0.02)
    # At whole positions, between two pixels, and between four.
    for y, x in ((0, 0), (0, 2), (2, 2), (1, 3)):
        assert fine[y::4, x::4].std().item() == pytest.approx(1, abs=0.02)
    neighbours = (fine[:, 1:] * fine[:, :-1]).mean().item()
    assert neighbours > 0.9
    assert torch.equal(fine[::4, ::4], noise[0, 0, :199, :199])


def test_grain_depends_on_position_not_on_region():
    whole = grain_noise(5, 2, 3, 20, range(10), range(20))
    part = grain_noise(5, 2, 3, 20, range(4, 7), range(3, 9))
    assert torch.equal(whole[:, :, 4:7, 3:9], part)
    assert whole.std().item() == pytest.approx(1, abs=0.1)


def test_both_branches_of_guidance_are_decoded_as_one_batch(net, monkeypatch):
    _, field = record(net, EulerFlowSampler(4, guidance_interval=(0.2, 0.6)))
    seen, forward = [], net.head.forward
    monkeypatch.setattr(net.head, 'forward', lambda s, *args: seen.append(len(s)) or forward(s, *args))
    field.decode(blend=0.0)
    assert seen == [2, 4, 4, 2]

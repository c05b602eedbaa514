import pytest
import torch

from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.functional.time import shift_time
from pixnerd_plugin.models.losses import FlowMatchREPALoss
from pixnerd_plugin.models.losses.density import draw_fine_pixels
from pixnerd_plugin.registry import MODELS
from tests.golden import network, read, relative_error


@pytest.fixture
def net():
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=8, alignment='centers')
    return MODELS.build(dict(type='PixNerdDiT', dim=32, depth=2, num_heads=4, patch_size=4, num_classes=5, head=head))


def small_loss(**kwargs) -> FlowMatchREPALoss:
    return FlowMatchREPALoss(**{**dict(align_layer=1, dim=32, projector_dim=16, teacher_dim=6), **kwargs})


def test_losses_and_every_gradient_are_the_published_ones():
    net, golden = network('c2i_tiny'), read('repa_loss')
    loss = FlowMatchREPALoss(align_layer=2, cond_drop_prob=0, dim=48, projector_dim=32, teacher_dim=20)
    prefix = 'proj.0.'
    loss.projector.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    terms = loss(
        net,
        golden['images'],
        golden['y'],
        noise=golden['noise'],
        t=shift_time(golden['z'].sigmoid(), 1.0),
        teacher_features=golden['encoder_features'],
    )
    assert terms['loss_flow'].item() == pytest.approx(golden['fm_loss'].item(), rel=1e-5)
    assert terms['loss_repa'].item() == pytest.approx(0.5 * golden['cos_loss'].item(), rel=1e-5)
    total = terms['loss_flow'] + terms['loss_repa']
    assert total.item() == pytest.approx(golden['loss'].item(), rel=1e-5)

    total.backward()
    gradients = to_published({name: parameter.grad for name, parameter in net.named_parameters()})
    gradients |= {f'{prefix}{name}': parameter.grad for name, parameter in loss.projector.named_parameters()}
    expected = {key.removeprefix('grad.'): value for key, value in golden.items() if key.startswith('grad.')}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected[name]) < 1e-5, name


def test_without_teacher_there_is_no_alignment_term(net):
    terms = small_loss()(net, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([5]))
    assert terms.keys() == {'loss_flow'}


def test_the_teacher_is_asked_and_stays_out_of_the_state(net):
    teacher = torch.nn.Conv2d(3, 6, 4, stride=4)
    loss = small_loss(teacher=lambda images: teacher(images).flatten(2).mT)
    terms = loss(net, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([5]))
    assert terms['loss_repa'] > 0
    as_module = small_loss(teacher=teacher)
    assert as_module.state_dict().keys() == small_loss().state_dict().keys()
    linears = [module for module in as_module.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 3


def test_alignment_is_zero_when_the_features_agree(net):
    loss = small_loss()
    x, t, cond = torch.randn(1, 3, 8, 8), torch.tensor([0.5]), torch.tensor([2])
    noise = torch.randn_like(x)
    _, features = net.encode((x + noise) / 2, t, cond, feature_layer=1)
    terms = loss(
        net,
        x,
        cond,
        noise=noise,
        t=t,
        teacher_features=3 * loss.projector(features),
        drop_mask=torch.tensor([False]),
        null_cond=cond,
    )
    assert terms['loss_repa'].item() == pytest.approx(0, abs=1e-6)


def test_dropped_conditions_become_the_null_condition(net):
    x, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.rand(2)
    torch.nn.init.normal_(net.head.proj.weight)
    null = torch.tensor([5])
    given = dict(noise=noise, t=t, null_cond=null)
    dropped = small_loss()(net, x, torch.tensor([0, 1]), drop_mask=torch.tensor([True, False]), **given)
    explicit = small_loss()(net, x, torch.tensor([5, 1]), drop_mask=torch.tensor([False, False]), **given)
    assert torch.equal(dropped['loss_flow'], explicit['loss_flow'])


def test_dropping_without_a_null_condition_is_an_error(net):
    with pytest.raises(ValueError, match='null_cond'):
        small_loss()(net, torch.randn(1, 3, 8, 8), torch.tensor([0]))


@pytest.mark.parametrize(('mean', 'std'), [(0.0, 1.0), (0.0, 1.5), (-0.8, 0.8)])
def test_times_are_log_normal_and_shifted(mean, std):
    torch.manual_seed(0)
    t = small_loss(timeshift=4.0, time_mean=mean, time_std=std).draw_time(20_000, torch.device('cpu'))
    z = torch.logit(4 * t / (1 + 3 * t))  # undo the shift, then the sigmoid
    assert abs(z.mean() - mean) < 0.03 * std
    assert abs(z.std() - std) < 0.03 * std


@pytest.mark.parametrize('overlap', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('density', [1, 4])
def test_fine_pixels_come_from_where_their_positions_say(density, overlap):
    height, width, patch = 8, 12, 4
    y, x = torch.meshgrid(torch.arange(height * density), torch.arange(width * density), indexing='ij')
    images = torch.stack((y, x, torch.zeros_like(y)))[None].float()
    farthest = 0
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, noise, (at_y, _) = draw_fine_pixels(images, torch.randn(1, 3, height, width), patch, overlap)
        assert pixels.shape == noise.shape == (1, 3, height, width)
        # Centres in base pixels, from the picture's own ramps; a resampled picture keeps them but at its border.
        found_y = (pixels[0, 0, :, 0] + 0.5) / density - 0.5
        rows = at_y * (patch - 1)
        expected = (torch.arange(0, height, patch)[:, None] + rows).flatten()
        # At the picture's edges without an overlap too; with one, some lie beyond, and are what is at the edge.
        inside = (expected > 0) & (expected < height - 1) if overlap else slice(None)
        torch.testing.assert_close(found_y[inside], expected[inside], atol=0.2, rtol=0)
        # One fine row under each base row, or under each of as many parts of the patch with its surroundings; a row
        # that is no whole share of it may overhang.
        parts = (torch.arange(patch) + 0.5) * (1 + 2 * overlap / patch) - overlap - 0.5
        assert (rows - parts).abs().max() <= 1 + overlap / patch
        assert (at_y.diff() >= 0).all()
        assert overlap or (at_y.diff() > 0).all()
        farthest = max(farthest, -0.5 - rows.min().item(), rows.max().item() - patch + 0.5)
    assert farthest <= overlap
    assert overlap == 0 or farthest > 0.7 * overlap - 0.25


def test_a_field_is_trained_on_what_its_neighbour_draws():
    images, noise = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 4, 4)
    images[..., 8:] = 1  # two patches across, of 2 base pixels each
    before = after = 0
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, _, (_, at_x) = draw_fine_pixels(images, noise, 2, overlap=1.0)
        # The base pixels' centres are at 0 and 1, and the borders of the patch at -0.5 and 1.5.
        left, right = pixels[0, 0, 0].round().view(2, 2)
        assert torch.equal(left, (at_x > 1.5).float())
        assert torch.equal(right, (at_x > -0.5).float())
        before, after = before + (at_x < -0.5).sum(), after + (at_x > 1.5).sum()
    assert before > 5
    assert after > 5


def test_a_negative_overlap_is_refused():
    with pytest.raises(ValueError, match='overlap=-1 must be 0 or more'):
        small_loss(overlap=-1)


@pytest.mark.parametrize('options', [dict(max_density=4), dict(overlap=1.0), dict(max_density=4, overlap=0.5)])
def test_training_beside_base_pixels_reaches_the_field(net, options):
    torch.nn.init.normal_(net.head.proj.weight)
    loss = small_loss(**options)
    terms = loss(net, torch.randn(2, 3, 32, 48), torch.tensor([0, 1]), torch.tensor([5]))
    terms['loss_flow'].backward()
    assert net.head.generator.weight.grad.any()

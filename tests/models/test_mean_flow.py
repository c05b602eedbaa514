"""MeanFlow: the identity, the derivative along the path, the loss and what it learns from."""

import math

import pytest
import torch

from pixnerd_plugin.models.losses import MeanFlowLoss
from pixnerd_plugin.models.losses.flow_match_repa import NoisyBatch
from pixnerd_plugin.models.losses.mean_flow import path_derivative
from pixnerd_plugin.registry import MODELS

TEXT_DIM = 6


def build_net(kind='class', step_end=True, **changes):
    """A tiny network, every parameter random, so that no path of it is dead."""
    torch.manual_seed(0)
    condition = dict(num_classes=5) if kind == 'class' else dict(text_dim=TEXT_DIM, text_depth=1, text_length=3)
    head = dict(type='NeuralFieldHead', width=8, alignment='centers')
    config = dict(type='PixNerdDiT', dim=16, depth=2, num_heads=2, patch_size=4, step_end=step_end, head=head)
    net = MODELS.build({**config, **condition, **changes})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def small_loss(**changes):
    settings = dict(align_layer=1, dim=16, projector_dim=8, teacher_dim=6, cond_drop_prob=0.0)
    return MeanFlowLoss(**{**settings, **changes})


class Path(torch.nn.Module):
    """A network that gives ``u(x, t, r)`` by a formula; its 'patch vectors' are what the formula needs."""

    step_end = True
    patch_size = 1

    def __init__(self, function):
        super().__init__()
        self.function = function

    def encode(self, x, t, cond, r=None, feature_layer=None):
        return torch.stack((t, t if r is None else r)), None

    def decode(self, s, pixels, grid, positions=None):
        t, r = (time.view(-1, 1, 1, 1) for time in s)
        return self.function(pixels, t, r)

    def grid_of(self, x):
        return x.shape[2:]


def batch_of(x, t, cond=None):
    return NoisyBatch(x, t, cond, x, x, None, None)


@pytest.mark.parametrize('kind', ['class', 'text'])
@pytest.mark.parametrize('prediction', ['velocity', 'image'])
def test_the_derivative_along_the_path_is_that_of_finite_differences(kind, prediction):
    net = build_net(kind, prediction=prediction).double()
    x, pixels, v, w = torch.randn(4, 2, 3, 8, 12, dtype=torch.float64).unbind()
    t, r = torch.tensor([0.1, 0.4]).double(), torch.tensor([1.0, 0.5]).double()
    cond = torch.tensor([1, 5]) if kind == 'class' else torch.randn(2, 3, TEXT_DIM).double()
    # Not the pixels of the picture, as when the field is trained between base pixels.
    positions = tuple(torch.rand(2, 4, dtype=torch.float64).sort(1)[0])
    batch = NoisyBatch(x, t, cond, pixels, w, positions, None)
    slope = path_derivative(net, batch, r, (v, w))

    def u(step):
        s, _ = net.encode(x + step * v, t + step, cond, r=r)
        return net.decode(s, pixels + step * w, (2, 3), positions, t=t + step)

    h = 1e-3
    with torch.no_grad():
        expected = (8 * (u(h) - u(-h)) - (u(2 * h) - u(-2 * h))) / (12 * h)
    assert ((slope - expected).norm() / expected.norm()).item() < 1e-5


def test_the_identity_holds_for_a_path_that_can_be_integrated():
    # dx/dt = a x, so x_r = x_t exp(a (r - t)), and the mean velocity is (x_r - x_t) / (r - t).
    a = -1.5
    net = Path(lambda x, t, r: x * torch.expm1(a * (r - t)) / (r - t))
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t, r = torch.tensor([0.0, 0.2, 0.5]).double(), torch.tensor([1.0, 0.9, 0.6]).double()
    slope = path_derivative(net, batch_of(x, t), r, (a * x, a * x))
    u = net.function(x, t.view(-1, 1, 1, 1), r.view(-1, 1, 1, 1))
    torch.testing.assert_close(u, a * x + (r - t).view(-1, 1, 1, 1) * slope)


def test_the_true_mean_velocity_has_no_error_and_another_has():
    # All data are the point 2: v = 2 - e is constant along a path, and so is its mean.
    images, noise = torch.full((2, 3, 4, 4), 2.0), torch.randn(2, 3, 4, 4)
    t, r = torch.tensor([0.0, 0.3]), torch.tensor([1.0, 0.7])
    cond = torch.zeros(2, dtype=torch.long)
    given = dict(noise=noise, t=t, r=r)
    terms = small_loss()(Path(lambda x, t, r: (2 - x) / (1 - t)), images, cond, **given)
    assert terms['error'].item() == pytest.approx(0, abs=1e-10)
    loss = small_loss()
    loss(Path(lambda x, t, r: (2 - x) / (1 - t) + r), images, cond, **given)
    # r too much, and along the path, whose velocity is off by t, u is off by -t / (1 - t) (r - t) more.
    off = r + (r - t) * t / (1 - t)
    torch.testing.assert_close(loss.per_image['error'], off.square())


def mean_of(a):
    """The mean velocity of ``dx/dt = a x``, whose limit for ``r = t`` is ``a x``."""
    return Path(lambda x, t, r: torch.where(r > t, x * torch.expm1(a * (r - t)) / (r - t).clamp(min=1e-6), a * x))


def test_the_difference_along_the_path_comes_near_its_derivative():
    torch.manual_seed(0)
    images, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t, r = torch.tensor([0.0, 0.2]), torch.tensor([1.0, 0.8])
    given = dict(cond=torch.zeros(2, dtype=torch.long), noise=noise, t=t, r=r)
    errors = []
    for reach in (0.4, 0.2, 0.1):
        net = mean_of(-1.0)
        terms = small_loss(reach=reach, velocity_teacher=net)(net, images, **given)
        errors.append(terms['error'].sqrt().item())
    # The true mean velocity; Heun's error over a share of a step goes with its square.
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.25)
    # Without a teacher, and for a network that is wrong, it comes near the loss with the derivative.
    net = Path(lambda x, t, r: torch.sin(2 * x + 3 * t + r))
    exact, near, far = (small_loss(reach=reach)(net, images, **given)['error'].item() for reach in (0.0, 0.002, 0.4))
    assert near == pytest.approx(exact, rel=0.01)
    assert far != pytest.approx(exact, rel=0.1)


def test_steps_of_no_length_have_no_difference():
    net, images, t = build_net(), torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.6])
    given = dict(cond=torch.tensor([0, 1]), noise=torch.randn(2, 3, 8, 8), t=t, r=t)
    plain, other = (small_loss(reach=reach)(net, images, **given)['error'] for reach in (0.0, 0.3))
    assert torch.isfinite(other)
    assert torch.equal(plain, other)
    with pytest.raises(ValueError, match='must be a share of the step'):
        small_loss(reach=1.0)


def test_with_equal_ends_and_no_weight_it_is_flow_matching():
    net, images, noise = build_net(), torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    t, cond = torch.rand(4), torch.arange(4)
    given = dict(noise=noise, t=t)
    ours = small_loss(power=0.0)(net, images, cond, r=t, **given)
    plain = MODELS.build(dict(type='FlowMatchREPALoss', cond_drop_prob=0.0))(net, images, cond, **given)
    torch.testing.assert_close(ours['loss_flow'], plain['loss_flow'])
    torch.testing.assert_close(ours['error'], plain['loss_flow'])


def test_the_gradient_is_that_of_the_mean_velocity_alone_and_weighted_by_picture():
    net, images, noise = build_net(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    t, r, cond = torch.tensor([0.1, 0.3]), torch.tensor([0.8, 1.0]), torch.tensor([0, 1])
    loss = small_loss(power=1.0, offset=0.5)
    loss(net, images, cond, noise=noise, t=t, r=r)['loss_flow'].backward()
    ours = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    x_t = t.view(-1, 1, 1, 1) * images + (1 - t).view(-1, 1, 1, 1) * noise
    v = images - noise
    path = net(x_t, t, cond).detach()
    slope = path_derivative(net, NoisyBatch(x_t, t, cond, x_t, v, None, None), r, (path, path)).detach()
    error = (net(x_t, t, cond, r=r) - v - (r - t).view(-1, 1, 1, 1) * slope).square().mean((1, 2, 3))
    (error / (error.detach() + 0.5)).mean().backward()
    for mine, parameter in zip(ours, net.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_guidance_is_learned_inside_the_interval():
    # u = condition: 3 for class 1 and 1 for the null class 5.
    class Net(Path):
        def encode(self, x, t, cond, r=None, feature_layer=None):
            return torch.where(cond == 5, 1.0, 3.0), None

        def decode(self, s, pixels, grid, positions=None):
            return s.view(-1, 1, 1, 1) + 0 * pixels

    net = Net(None)
    images, noise = torch.full((2, 3, 4, 4), 3.0), torch.zeros(2, 3, 4, 4)
    # The lower end is inside: a step from noise begins there.
    t, cond, null = torch.tensor([0.0, 0.8]), torch.tensor([1, 1]), torch.tensor([5])
    # Inside, the target is the data's 3 and (1 - 1/4) (3 - 1) more; outside it is the data's.
    loss = small_loss(guidance_scale=4.0, guidance_interval=(0.0, 0.6))
    terms = loss(net, images, cond, null, noise=noise, t=t, r=t)
    assert loss.per_image['error'].tolist() == pytest.approx([1.5**2, 0])
    # Of a teacher it is the guided velocity, 1 + 4 (3 - 1), whatever the data.
    taught = small_loss(guidance_scale=4.0, guidance_interval=(0.0, 0.6), velocity_teacher=net)
    taught(net, 0 * images, cond, null, noise=noise, t=t, r=t)
    assert taught.per_image['error'].tolist() == pytest.approx([6.0**2, 0])
    assert terms['error'].requires_grad is False
    with pytest.raises(ValueError, match='needs null_cond'):
        loss(net, images, cond, noise=noise, t=t, r=t)


def test_the_shares_of_the_steps():
    torch.manual_seed(0)
    loss = small_loss(equal_share=0.25, end_share=0.3, whole_share=0.15)
    t, r, equal = loss.draw_steps(1000, torch.device('cpu'))
    assert (equal, int((t == r).sum())) == (250, 250)
    assert int(((r == 1) & (t > 0)).sum()) == 300
    assert int(((r == 1) & (t == 0)).sum()) == 150
    assert bool((t <= r).all())
    counts = [loss.draw_steps(2, torch.device('cpu'))[2] for _ in range(300)]
    assert set(counts) == {0, 1}  # 0.25 of 2 is none or one
    assert sum(counts) / 300 == pytest.approx(0.5, abs=0.1)


def test_steps_grow_from_no_length_to_their_own():
    torch.manual_seed(0)
    loss, net, images = small_loss(warmup=4, equal_share=0.0), build_net(), torch.randn(8, 3, 8, 8)
    spans = []
    for _ in range(6):
        t, r, _ = loss.draw_steps(1000, torch.device('cpu'))
        spans.append(float((r - t).max()))
        loss(net, images, torch.zeros(8, dtype=torch.long))
    assert spans == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1], abs=1e-3)
    # Before, if it is asked for, so many batches of flow matching.
    later = small_loss(flow_batches=2, warmup=4, equal_share=0.25)
    for spent, length, equal in ((0, 0, 8), (1, 0, 8), (2, 0, 2), (4, 0.5, 2), (9, 1, 2)):
        later.batches.fill_(spent)
        t, r, found = later.draw_steps(8, torch.device('cpu'))
        assert found == equal
        assert float((r - t).max()) == pytest.approx(length, abs=0.1 * length)
    # A resumed run goes on with them.
    again = small_loss(warmup=4)
    again.load_state_dict(loss.state_dict())
    assert again.batches == 6


def test_only_the_pictures_with_a_path_get_one():
    # At several densities the path needs the base picture's velocities too; flow matching does not.
    net, teacher, decoded = build_net(), build_net(step_end=False), []
    decode = teacher.decode
    teacher.decode = lambda s, *args, **kwargs: (decoded.append(len(s)), decode(s, *args, **kwargs))[1]
    loss = small_loss(velocity_teacher=teacher, max_density=2, flow_batches=1, equal_share=0.5)
    for _ in range(2):
        loss(net, torch.randn(4, 3, 16, 16), torch.arange(4))
    assert decoded == [4, 4, 2]


def test_noise_is_drawn_within_its_limit():
    seen = []
    net = Path(lambda x, t, r: 0 * x)
    encode = net.encode
    net.encode = lambda x, *args, **kwargs: (seen.append(x), encode(x, *args, **kwargs))[1]
    loss = small_loss(noise_limit=0.5, equal_share=0.0, end_share=0.0, whole_share=1.0)
    loss(net, torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
    assert seen[0].abs().max() == 0.5
    assert (seen[0].abs() < 0.5).any()


@pytest.mark.parametrize('reach', [0.0, 0.3])
@pytest.mark.parametrize('prediction', ['velocity', 'image'])
def test_near_the_image_a_network_of_images_is_asked_for_nothing_it_cannot_give(prediction, reach):
    net, images, noise = build_net(prediction=prediction), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    loss = small_loss(reach=reach)
    t = torch.tensor([0.5, 0.99])
    loss(net, images, torch.zeros(2, dtype=torch.long), noise=noise, t=t, r=torch.ones(2))
    assert loss.per_image['t'].tolist() == pytest.approx([0.5, 0.95 if prediction == 'image' else 0.99])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(equal_share=0.6, end_share=0.6), 'at most 1 together'), (dict(whole_share=-0.1), 'each must be 0 or more')],
)
def test_shares_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_loss(**arguments)


def test_the_beginning_alone_is_flow_matching_and_the_end_alone_is_refused():
    net, loss, given = build_net(), small_loss(), dict(noise=torch.randn(2, 3, 8, 8), t=torch.rand(2))
    images, cond = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    alone = loss(net, images, cond, **given)['error']
    assert torch.equal(alone, loss(net, images, cond, r=given['t'], **given)['error'])
    with pytest.raises(ValueError, match='only with t'):
        loss(net, images, cond, r=torch.ones(2))


@pytest.mark.parametrize(('recompute', 'reach'), [(False, 0.0), (True, 0.0), (True, 0.2)])
def test_it_trains_in_bf16_on_several_densities_with_a_teacher_and_terms(recompute, reach):
    net, teacher = build_net(checkpoint=recompute), build_net(step_end=False)
    features = torch.nn.Conv2d(3, 6, 4, stride=4)
    loss = small_loss(
        reach=reach,
        velocity_teacher=teacher,
        guidance_scale=2.0,
        max_density=2,
        cond_drop_prob=0.5,
        teacher=lambda images: features(images).flatten(2).mT,
        terms=[dict(type='FrequencyLoss')],
    )
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        terms = loss(net, torch.randn(4, 3, 16, 16), torch.arange(4), torch.tensor([5] * 4))
    assert terms.keys() == {'loss_flow', 'error', 'loss_repa', 'loss_frequency'}
    sum(value for name, value in terms.items() if name.startswith('loss')).backward()
    for name, parameter in net.named_parameters():
        assert 0 < parameter.grad.norm() < math.inf, name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert 'velocity_teacher' not in str(loss.state_dict().keys())
    assert {'t', 'loss_flow', 'error', 'loss_repa', 'loss_frequency'} == loss.per_image.keys()
    assert math.isclose(loss.per_image['error'].mean(), terms['error'], rel_tol=1e-5)


def test_recomputed_activations_give_the_same_gradient():
    gradients = []
    for recompute in (False, True):
        net = build_net(checkpoint=recompute)
        torch.manual_seed(1)
        small_loss()(net, torch.randn(4, 3, 8, 8), torch.arange(4))['loss_flow'].backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)

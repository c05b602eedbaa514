import math

import numpy as np
import pytest
import torch

from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.functional.time import time_grid
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler, HeunFlowSampler
from pixnerd_plugin.sampling.adams import adams_coefficients
from tests.golden import network, read, relative_error

# Orders 3 and 4: the release evaluates their weights in float32.
TOLERANCE = {3: 1e-4, 4: 1e-3}
SHIFT_3 = dict(timeshift=3.0, guidance_scale=4.0, guidance_interval=(0.0, 1.0))
SHIFT_1 = dict(timeshift=1.0, guidance_scale=3.5, guidance_interval=(0.1, 1.0))
RUNS = {
    **{f'adams{k}_shift1': AdamsFlowSampler(8, order=k, **SHIFT_1) for k in (1, 2, 3, 4)},
    **{f'adams{k}_shift3': AdamsFlowSampler(8, order=k, **SHIFT_3) for k in (1, 2, 3, 4)},
    'euler_shift1': EulerFlowSampler(8, **SHIFT_1),
    'euler_shift3': EulerFlowSampler(8, timeshift=3.0, guidance_scale=4.0, guidance_interval=(0.3, 0.9)),
}


class Net(torch.nn.Module):
    """A velocity that can be integrated by hand, and a count of what it was asked."""

    patch_size = 1

    def __init__(self, function):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.function = function
        self.batches = []

    def forward(self, x, t, cond, token_grid=None, field_chunk=None):
        self.batches.append(len(x))
        return self.function(x, t.view(-1, 1, 1, 1).double(), cond.view(-1, 1, 1, 1))


@pytest.mark.parametrize('name', RUNS)
def test_trajectories_are_the_published_ones(name):
    sampler, golden = RUNS[name], read('samplers')
    net = network('c2i_tiny')
    image, trajectory = sampler.sample(net, golden['noise'], golden['y'], golden['y_null'], return_trajectory=True)
    tolerance = TOLERANCE.get(sampler.order, 1e-5)
    for ours, theirs in zip(trajectory, golden[f'{name}.x_trajectory'], strict=True):
        assert relative_error(ours, theirs) < tolerance
    assert torch.equal(image, trajectory[-1])
    assert relative_error(sampler.timesteps, golden[f'{name}.timesteps']) < 1e-6
    if sampler.order > 1:
        for ours, theirs in zip(sampler.coefficients, golden[f'{name}.coeffs'], strict=True):
            np.testing.assert_allclose(ours, theirs[: len(ours)], atol=tolerance)


@pytest.mark.parametrize('order', [1, 2, 3, 4])
@pytest.mark.parametrize('shift', [1.0, 3.0, 0.5])
def test_adams_weights_integrate_polynomials_exactly(order, shift):
    times = time_grid(10, shift).numpy()
    for i, weights in enumerate(adams_coefficients(times, order)):
        k = len(weights)
        assert k == min(order, i + 1)
        for degree in range(k):
            step = times[i + 1] - times[i]
            exact = (times[i + 1] ** (degree + 1) - times[i] ** (degree + 1)) / (degree + 1)
            assert step * np.dot(weights, times[i + 1 - k : i + 1] ** degree) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ('sampler', 'order'),
    [
        (lambda n: EulerFlowSampler(n, guidance_scale=1), 1),
        (lambda n: HeunFlowSampler(n, guidance_scale=1), 2),
        (lambda n: AdamsFlowSampler(n, order=2, guidance_scale=1, timeshift=1), 2),
        (lambda n: AdamsFlowSampler(n, order=3, guidance_scale=1, timeshift=1), 3),
        (lambda n: AdamsFlowSampler(n, order=4, guidance_scale=1, timeshift=1), 4),
    ],
)
def test_order_of_convergence(sampler, order):
    net = Net(lambda x, t, c: x * torch.cos(3 * t))
    noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact = math.exp(math.sin(3) / 3)
    errors = [abs(sampler(n).sample(net, noise, torch.zeros(1)).item() - exact) for n in (80, 160)]
    # A multistep method starts with an Euler step, whose error is of second order: no order above 2 shows here.
    assert math.log2(errors[0] / errors[1]) > min(order, 2) - 0.3


def test_guidance_is_strictly_inside_the_interval_and_halves_the_work_outside():
    net = Net(lambda x, t, c: c + 0 * x)
    noise = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    # Steps at t = 0, 0.25, 0.5, 0.75: guided at 0.5 only.
    sampler = EulerFlowSampler(4, guidance_scale=3.0, guidance_interval=(0.25, 0.75))
    image = sampler.sample(net, noise, torch.tensor([1.0, 2.0]).double(), torch.zeros(1).double())
    assert net.batches == [2, 2, 4, 2]
    assert image.flatten().tolist() == pytest.approx([1 * (1 + 2 / 4), 2 * (1 + 2 / 4)])


def test_guidance_without_a_null_condition_is_an_error():
    with pytest.raises(ValueError, match='null_cond'):
        EulerFlowSampler(2).sample(Net(lambda x, t, c: x), torch.zeros(1, 1, 1, 1), torch.zeros(1))


def test_sde_keeps_the_marginals():
    # Data that are a single point at 2: x_t = 2 t + (1 - t) e, v = (2 - x) / (1 - t).
    net = Net(lambda x, t, c: (2 - x) / (1 - t).clamp(min=1e-3))
    noise = torch.randn(4000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = EulerFlowSampler(200, guidance_scale=1, stochastic=True)
    torch.manual_seed(0)
    _, trajectory = sampler.sample(net, noise, torch.zeros(4000), return_trajectory=True)
    middle = trajectory[100]
    assert middle.mean().item() == pytest.approx(1.0, abs=0.03)
    assert middle.std().item() == pytest.approx(0.5, abs=0.03)
    assert trajectory[-1].sub(2).abs().max() < 1e-6


def test_sde_noise_of_a_picture_does_not_depend_on_the_batch():
    net = Net(lambda x, t, c: -x)
    sampler = EulerFlowSampler(5, guidance_scale=1, stochastic=True)

    def sample(seeds):
        generators = image_generators(seeds)
        noise = draw_noise(generators, (1, 2, 2)).double()
        return sampler.sample(net, noise, torch.zeros(len(seeds)), generators=generators)

    torch.testing.assert_close(sample([7, 8, 9])[1:2], sample([8]))


def test_callback_sees_every_step_and_can_stop():
    seen = []

    def callback(step):
        seen.append((step.index, step.num_steps, step.denoised.shape))
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EulerFlowSampler(5, guidance_scale=1).sample(
            Net(lambda x, t, c: x), torch.zeros(1, 1, 2, 2), torch.zeros(1), callback=callback
        )
    assert seen == [(i, 5, (1, 1, 2, 2)) for i in range(3)]


def test_denoised_is_the_image_when_the_path_is_straight():
    net = Net(lambda x, t, c: 3 + 0 * x)
    steps = []
    noise = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    image = EulerFlowSampler(4, guidance_scale=1).sample(net, noise, torch.zeros(1), callback=steps.append)
    assert [step.denoised.item() for step in steps] == pytest.approx([image.item()] * 4)


@pytest.mark.parametrize('kind', ['AdamsFlowSampler', 'EulerFlowSampler', 'HeunFlowSampler'])
def test_config_rebuilds_the_sampler(kind):
    sampler = MODELS.build(dict(type=kind, num_steps=7, guidance_scale=2.0, timeshift=1.5))
    again = MODELS.build(sampler.config())
    assert again.config() == sampler.config()
    assert again.times == sampler.times


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_steps=0), 'num_steps=0'),
        (dict(timeshift=0), 'timeshift=0'),
        (dict(guidance_interval=(0.9, 0.1)), 'guidance_interval'),
        (dict(order=5), 'order=5'),
        (dict(noise_limit=-1.0), 'noise_limit=-1.0'),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdamsFlowSampler(**arguments)


def test_limited_noise_is_cut_at_both_ends_alike_and_by_default_not_at_all():
    noise = torch.tensor([-5.0, -2.0, 0.5, 4.0]).view(1, 1, 2, 2)
    net = Net(lambda x, t, c: 0 * x)
    limited = EulerFlowSampler(2, guidance_scale=1, noise_limit=3.0)
    image, trajectory = limited.sample(net, noise, torch.zeros(1), return_trajectory=True)
    assert trajectory[0].flatten().tolist() == [-3, -2, 0.5, 3]
    assert torch.equal(image, trajectory[0])
    assert limited.config()['noise_limit'] == 3.0
    assert torch.equal(EulerFlowSampler(2, guidance_scale=1).sample(net, noise, torch.zeros(1)), noise)

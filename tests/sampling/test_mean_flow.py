"""A picture in a few steps of a network of mean velocities."""

from itertools import pairwise

import pytest
import torch

from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, FieldTrajectory, MeanFlowSampler
from tests.models.test_mean_flow import TEXT_DIM, build_net


def conds(kind):
    if kind == 'class':
        return torch.tensor([1, 3]), torch.tensor([5])
    return torch.randn(2, 3, TEXT_DIM), torch.randn(1, 3, TEXT_DIM)


@pytest.mark.parametrize('kind', ['class', 'text'])
@pytest.mark.parametrize('steps', [1, 2, 4])
def test_each_step_is_one_call_with_both_its_ends(kind, steps):
    net, noise, (cond, null) = build_net(kind), torch.randn(2, 3, 8, 8), conds(kind)
    sampler = MeanFlowSampler(steps, timeshift=2.0)
    image, trajectory = sampler.sample(net, noise, cond, null, return_trajectory=True)
    x, times = noise, sampler.timesteps.tolist()
    with torch.no_grad():
        for t, r in pairwise(times):
            x = x + (r - t) * net(x, torch.full((2,), t), cond, r=torch.full((2,), r))
    torch.testing.assert_close(image, x)
    assert trajectory.shape == (steps + 1, *noise.shape)
    assert torch.equal(trajectory[0], noise)


def test_one_exact_step_is_the_end_of_the_path():
    class Exact(torch.nn.Module):
        """``u`` of dx/dt = -2 x; a user's own network, without conditioning computed ahead."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, cond, token_grid=None, field_chunk=None, r=None):
            span = (r - t).view(-1, 1, 1, 1)
            return x * torch.expm1(-2 * span) / span

    noise = torch.randn(2, 1, 2, 2)
    for steps in (1, 3):
        image = MeanFlowSampler(steps).sample(Exact(), noise, torch.zeros(2))
        torch.testing.assert_close(image, noise * torch.e**-2)


@pytest.mark.parametrize('prediction', ['velocity', 'image'])
@pytest.mark.parametrize('steps', [1, 2])
def test_a_picture_of_few_steps_decodes_at_any_size(tmp_path, prediction, steps):
    net, noise = build_net(prediction=prediction), torch.randn(2, 3, 8, 8)
    image, field = MeanFlowSampler(steps).sample(
        net, noise, torch.tensor([1, 3]), record_field=True, field_dtype=torch.float32
    )
    assert len(field.tokens) == steps
    torch.testing.assert_close(field.decode(), image)
    fine = field.decode((32, 32))
    assert fine.shape == (2, 3, 32, 32)
    field.save(tmp_path / 'field.safetensors')
    again = FieldTrajectory.load(tmp_path / 'field.safetensors')
    assert again.sampler.config() == dict(type='MeanFlowSampler', num_steps=steps, timeshift=1.0, noise_limit=0.0)
    torch.testing.assert_close(again.decode((32, 32)), fine)


def test_it_is_rebuilt_from_its_config_and_replaces_others():
    sampler = MODELS.build(dict(type='MeanFlowSampler', num_steps=2, noise_limit=2.0))
    assert MODELS.build(sampler.config()).config() == sampler.config()
    assert sampler.replace(num_steps=4).ends == {0.0: 0.25, 0.25: 0.5, 0.5: 0.75, 0.75: 1.0}
    assert AdamsFlowSampler(8).replace('MeanFlowSampler', num_steps=1).times == [0, 1]
    with pytest.raises(ValueError, match='MeanFlowSampler has no setting guidance_scale'):
        sampler.replace(guidance_scale=4.0)


def test_a_network_of_velocities_is_refused():
    with pytest.raises(ValueError, match='MeanFlowSampler draws from networks that were trained with MeanFlowLoss'):
        MeanFlowSampler().sample(build_net(step_end=False), torch.randn(1, 3, 8, 8), torch.tensor([0]))


def test_other_samplers_follow_its_velocity():
    net, noise, cond = build_net(), torch.randn(1, 3, 8, 8), torch.tensor([1])
    image = AdamsFlowSampler(1, guidance_scale=1).sample(net, noise, cond)
    with torch.no_grad():
        torch.testing.assert_close(image, noise + net(noise, torch.zeros(1), cond))


@pytest.mark.parametrize('kind', ['EulerFlowSampler', 'HeunFlowSampler', 'AdamsFlowSampler'])
def test_another_sampler_in_its_place_guides_no_further(kind):
    # The guidance is learned; a default of 3.5 would come on top.
    other = MeanFlowSampler(2).replace(type=kind)
    assert other.guidance_scale == 1.0
    assert other.replace(guidance_scale=2.0).guidance_scale == 2.0
    assert 'times' not in MeanFlowSampler(2).replace(type=kind, num_steps=8).config()

"""Times and guided steps chosen ahead."""

import json

import numpy as np
import pytest
import torch

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.metadata import check_metadata
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler
from pixnerd_plugin.sampling.plan import Choice, Path, apply_plan, descend, follow

PLAN = dict(
    type='AdamsFlowSampler',
    order=2,
    guidance_scale=2.0,
    guidance_interval=[-1.0, 0.5],
    times=[0.0, 0.1, 0.4, 1.0],
    error=0.01,
)


class Net(torch.nn.Module):
    """A velocity that depends on time alone, so that the true path is the one a solver asks on."""

    def __init__(self, function):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x, t, cond, token_grid=None, field_chunk=None):
        return x * 0 + self.function(t.view(-1, 1, 1, 1)) * cond.view(-1, 1, 1, 1)


def inputs(batch=2):
    noise = torch.randn(batch, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return noise, torch.arange(1.0, batch + 1), torch.zeros(1)


@pytest.mark.parametrize('order', [1, 2, 3])
def test_the_error_on_the_path_is_the_error_of_the_solver(order):
    net = Net(lambda t: torch.exp(-5 * t))
    many = AdamsFlowSampler(400, 4, guidance_scale=3.0, guidance_interval=(-1.0, 0.6), timeshift=1.0)
    path, image = follow(net, many, inputs(), 200)
    assert len(path.times) == 201
    few = many.replace(num_steps=8, order=order, timeshift=2.0)
    choice = path.choice(few.times)
    settings = path.settings(choice)
    run = few.replace(**settings).sample(net, *inputs())
    error = (run - image).flatten(1).norm(dim=1).square().mean().sqrt().item()
    assert path.error(choice, order) == pytest.approx(error, rel=0.03)


def test_a_choice_and_the_settings_of_a_sampler_say_the_same():
    path = Path(np.linspace(0, 1, 101), torch.zeros(2, 101, 1, 1), (0.0, 0.6))
    choice = path.choice([0.0, 0.25, 0.5, 0.75, 1.0])
    assert choice == Choice((0, 25, 50, 75, 100), 1, 2)
    for first, last, guided in ((1, 2, [0.25, 0.5]), (0, 3, [0.0, 0.25, 0.5, 0.75]), (1, 0, [])):
        settings = path.settings(choice._replace(first=first, last=last))
        low, high = settings['guidance_interval']
        assert [t for t in settings['times'][:-1] if low < t < high] == guided
    # Nodes are never taken twice.
    assert path.choice([0.0, 0.001, 0.002, 0.999, 1.0]).nodes == (0, 1, 2, 99, 100)


def test_descending_finds_where_the_velocity_changes():
    # It falls within the first tenth; even times of four steps see little of that.
    net = Net(lambda t: torch.exp(-30 * t))
    many = EulerFlowSampler(400, guidance_scale=1.0, timeshift=1.0)
    path, image = follow(net, many, inputs(), 200)
    start = path.choice(np.linspace(0, 1, 5))
    best, error = descend(start, lambda choice: path.error(choice, 1), (-1, 1, -8, 8), 2000)
    assert error < 0.2 * path.error(start, 1)
    assert path.times[best.nodes[1]] < 0.1
    run = many.replace(num_steps=4).replace(**path.settings(best)).sample(net, *inputs())
    even = many.replace(num_steps=4).sample(net, *inputs())
    assert (run - image).norm() < 0.3 * (even - image).norm()


def test_a_sampler_may_have_times_of_its_own():
    times = [0.0, 0.1, 0.4, 1.0]
    sampler = AdamsFlowSampler(order=2, guidance_scale=1.0, times=times)
    assert (sampler.num_steps, sampler.times) == (3, times)
    assert MODELS.build(sampler.config()).times == times
    assert sampler.replace(guidance_scale=2.0).times == times
    assert sampler.replace(num_steps=2, timeshift=1.0).times == [0, 0.5, 1]
    assert 'times' not in AdamsFlowSampler().config()
    for wrong in ([0.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.0, float('nan'), 1.0], [0.1, 1.0], [0.0], []):
        with pytest.raises(ValueError, match='must rise from 0 to 1'):
            AdamsFlowSampler(times=wrong)


def test_a_plan_is_for_its_solver_steps_and_guidance():
    sampler = AdamsFlowSampler(3, 2, guidance_scale=2.0)
    planned = apply_plan(sampler, [PLAN])
    assert planned.times == PLAN['times']
    assert planned.guidance_interval == (-1.0, 0.5)
    for other in (sampler.replace(num_steps=4), sampler.replace(order=1), sampler.replace(guidance_scale=3.0)):
        with pytest.raises(ValueError, match=r'no plan of \d steps of AdamsFlowSampler'):
            apply_plan(other, [PLAN])


@pytest.mark.parametrize('name', ['type', 'order', 'guidance_scale', 'guidance_interval', 'times'])
def test_a_file_whose_plan_lacks_an_entry_is_refused(name):
    assert check_metadata(dict(plans=[PLAN])) == dict(plans=[PLAN])
    with pytest.raises(ValueError, match=r'its metadata: plans=.* must be'):
        check_metadata(dict(plans=[{key: value for key, value in PLAN.items() if key != name}]))


def test_times_that_do_not_rise_are_named_and_not_listed():
    with pytest.raises(ValueError, match=r'^times must rise from 0 to 1, and 0\.5 follows 0\.5$'):
        EulerFlowSampler(times=[0.0, *[0.5] * 999, 1.0])


def test_a_plan_is_for_the_path_and_not_for_a_solver_that_draws_noise():
    sampler = EulerFlowSampler(3, guidance_scale=2.0, stochastic=True)
    with pytest.raises(ValueError, match='without noise of their own'):
        apply_plan(sampler, [{**PLAN, 'type': 'EulerFlowSampler', 'order': 1}])


def test_a_plan_is_for_classifier_free_guidance():
    with pytest.raises(ValueError, match='leave the other guidance out'):
        apply_plan(AdamsFlowSampler(3, 2, guidance_scale=2.0, guidance=dict(type='CFGZeroStar')), [PLAN])


def test_plans_travel_with_the_file_and_draw(tmp_path):
    head = dict(type='NeuralFieldHead', width=4, depth=1)
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, head=head))
    torch.nn.init.normal_(net.head.proj.weight)
    sampling = dict(type='AdamsFlowSampler', order=2, num_steps=3, guidance_scale=2.0)
    meta = dict(pixnerd=dict(architecture=net.architecture(), sampling=sampling, resolution=8))
    torch.save(
        dict(state_dict={f'backbone.{k}': v for k, v in net.state_dict().items()}, meta=meta), tmp_path / 'a.pth'
    )
    metadata = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', plans=[PLAN])
    assert json.loads(json.dumps(metadata['plans'])) == [PLAN]
    # Another of the same kind takes its place; converting again keeps it.
    convert(tmp_path / 'b.safetensors', tmp_path / 'c.safetensors', plans=[{**PLAN, 'times': [0.0, 0.2, 0.3, 1.0]}])
    assert convert(tmp_path / 'c.safetensors', tmp_path / 'd.safetensors')['plans'][0]['times'] == [0.0, 0.2, 0.3, 1.0]
    pipe = load_pipeline(tmp_path / 'b.safetensors')
    assert pipe.plan(pipe.sampler).times == PLAN['times']
    plain, planned = pipe(labels=[1]), pipe(labels=[1], planned=True)
    assert plain[0].tobytes() != planned[0].tobytes()
    with pytest.raises(ValueError, match=r'b\.safetensors: it has no plan of 4 steps .* only of 3'):
        pipe(labels=[1], num_steps=4, planned=True)
    # What a plan chooses cannot be chosen beside it.
    with pytest.raises(ValueError, match=r'b\.safetensors: its plans choose .* leave out timeshift and guidance_in'):
        pipe(labels=[1], timeshift=2.0, guidance_interval=(0.0, 0.5), planned=True)
    assert pipe(labels=[1], num_steps=3, guidance_scale=2.0, planned=True)[0].tobytes() == planned[0].tobytes()

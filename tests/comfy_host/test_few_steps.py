"""A network of mean velocities as a native MODEL: one to eight steps, whatever the cfg."""

import logging

import pytest
from safetensors.torch import save_file

from pixnerd_plugin.registry import MODELS

from .host import build_net, import_host, randomize, require_host

require_host()
import_host()

import comfy.sd  # noqa: E402

from comfy_nodes.nodes import PixNerdDecode  # noqa: E402
from comfy_nodes.weights import METADATA_TENSOR, metadata_tensor  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler, MeanFlowSampler  # noqa: E402

from .native import SEED, empty, error, noise, sample  # noqa: E402

OWN = dict(type='MeanFlowSampler', num_steps=4, timeshift=1.0)


def load(net, folder, **metadata):
    """By core's own loader, which in older hosts does not read a file's header."""
    metadata = metadata_tensor({'architecture': net.architecture(), **metadata})
    save_file({**net.state_dict(), METADATA_TENSOR: metadata}, folder / 'model.safetensors')
    return comfy.sd.load_diffusion_model(str(folder / 'model.safetensors'))


@pytest.fixture(scope='module')
def net(kind):
    return randomize(MODELS.build({**build_net(kind).architecture(), 'step_end': True}), seed=2).eval()


@pytest.fixture
def model(net, tmp_path):
    return load(net, tmp_path, sampling=OWN)


def reference(net, conds, steps, **options):
    return MeanFlowSampler(steps).sample(net, noise(), *conds[0], **options)


@pytest.mark.parametrize('steps', [1, 2, 8])
def test_the_sampler_takes_mean_flow_steps_and_says_so(model, net, conds, steps, caplog):
    with caplog.at_level(logging.INFO):
        result = sample(model, conds, steps=steps, cfg=5.0, order=2)['samples']
    assert error(result, reference(net, conds, steps)) <= 1e-4
    (line,) = [record.message for record in caplog.records if 'MeanFlow steps' in record.message]
    assert line.endswith(f'{steps} MeanFlow steps, shift 1; cfg is ignored, the guidance is learned')


def test_by_default_it_takes_the_steps_of_the_file(model, net, conds):
    result = sample(model, conds, steps=0, cfg=0.0, order=0)['samples']
    assert error(result, reference(net, conds, 4)) <= 1e-4


@pytest.mark.parametrize(('cfg', 'prediction'), [(1.0, 'velocity'), (6.0, 'velocity'), (1.0, 'image')])
def test_stock_ksampler_with_euler_draws_the_same(net, conds, cfg, prediction, caplog, tmp_path):
    from nodes import KSampler

    net = randomize(MODELS.build({**net.architecture(), 'prediction': prediction}), seed=2).eval()
    model = load(net, tmp_path, sampling=OWN)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            result = KSampler().sample(model, SEED, 4, cfg, 'euler', 'simple', *conds[1], empty())[0]['samples']
    assert error(result, reference(net, conds, 4)) <= 1e-4
    assert sum('cfg and the negative prompt have no effect' in record.message for record in caplog.records) == 1


@pytest.mark.parametrize('prediction', ['velocity', 'image'])
def test_a_one_step_picture_decodes_at_any_size(net, conds, tmp_path, prediction):
    net = randomize(MODELS.build({**net.architecture(), 'prediction': prediction}), seed=2).eval()
    model = load(net, tmp_path, sampling=OWN)
    latent = sample(model, conds, steps=1, record_field=True)
    _, field = reference(net, conds, 1, record_field=True)
    image = PixNerdDecode.execute(latent, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0]
    expected = ((field.decode((128, 192)) + 1) / 2).clamp(0, 1).movedim(1, -1)
    # Both keep patch vectors in bfloat16.
    assert error(image, expected) < 2e-2


class TestPlanned:
    """Times and guided steps that a file has for its network."""

    PLAN = dict(
        type='AdamsFlowSampler',
        order=2,
        guidance_scale=3.0,
        guidance_interval=[-1.0, 0.5],
        times=[0.0, 0.1, 0.3, 0.7, 1.0],
        error=0.1,
    )

    @pytest.fixture
    def model(self, kind, tmp_path):
        return load(build_net(kind), tmp_path, plans=[self.PLAN])

    def test_the_sampler_follows_the_plan(self, model, kind, conds):
        result = sample(model, conds, steps=4, planned=True)['samples']
        solver = AdamsFlowSampler(order=2, guidance_scale=3.0, guidance_interval=(-1.0, 0.5), times=self.PLAN['times'])
        assert error(result, solver.sample(build_net(kind), noise(), *conds[0])) <= 1e-4
        assert error(result, sample(model, conds, steps=4)['samples']) > 1e-3

    def test_widgets_that_the_plan_stands_for_are_ignored_and_said_so(self, model, conds, caplog):
        with caplog.at_level(logging.INFO):
            own = sample(model, conds, steps=4, planned=True, guidance_end=0.0)['samples']
            other = sample(model, conds, steps=4, planned=True, guidance_end=0.3, shift=2.0)['samples']
        assert error(other, own) == 0
        quiet, said = [record.message for record in caplog.records if 'planned times' in record.message]
        assert 'ignored' not in quiet
        assert said.endswith('planned times; shift, guidance_start and guidance_end are ignored')

    def test_what_it_does_not_hold_for_is_said(self, model, conds):
        with pytest.raises(ValueError, match=r'planned: .* no plan of 5 steps .* only of 4'):
            sample(model, conds, steps=5, planned=True)
        with pytest.raises(ValueError, match='set denoise to 1'):
            sample(model, conds, steps=4, planned=True, denoise=0.5)

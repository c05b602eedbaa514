"""Guidance as parts: closed forms, and what holds for every one of them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.autoguidance import AutoGuidance
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.formats.parts import build_part
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import (
    AdamsFlowSampler,
    AdaptiveProjectedGuidance,
    CFGZeroStar,
    ClassifierFreeGuidance,
    EulerFlowSampler,
    FieldTrajectory,
    HeunFlowSampler,
)
from pixnerd_plugin.sampling.compiled import _compiled
from pixnerd_plugin.sampling.guidance import Run
from tests.golden import relative_error
from tests.training import ROOT

APG = dict(type='AdaptiveProjectedGuidance', eta=0.3, norm_threshold=2.0, momentum=-0.5)
KINDS = [
    dict(type='ClassifierFreeGuidance'),
    dict(type='CFGZeroStar'),
    dict(type='CFGZeroStar', zero_steps=1),
    APG,
    dict(type='AutoGuidance'),
]
COND, NULL = torch.tensor([1, 2]), torch.tensor([5])


def build(seed=0, dim=32):
    torch.manual_seed(seed)
    head = dict(type='NeuralFieldHead', width=8, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=dim, depth=1, num_heads=4, patch_size=4, num_classes=5, head=head))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    nn.init.normal_(net.label_embed.weight)
    return net


@pytest.fixture(scope='module')
def net():
    return build()


@pytest.fixture(scope='module')
def weak():
    return build(1, dim=16)


def noise():
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def complete(kind, weak):
    return dict(kind, network=weak) if kind['type'] == 'AutoGuidance' else kind


def velocities():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 2, 3, 4, 5, generator=generator).unbind()


def test_zero_star_is_its_formula():
    null, cond, x = velocities()
    run = Run()
    guided = CFGZeroStar().combine(null, cond, x, 0.4, 3.0, run)
    for b in range(2):
        s = (cond[b] * null[b]).sum() / null[b].square().sum()
        torch.testing.assert_close(guided[b], s * null[b] + 3 * (cond[b] - s * null[b]))
        torch.testing.assert_close(run.numbers[0][b], s)


def test_projected_guidance_is_its_formula():
    null, cond, x = velocities()
    part = AdaptiveProjectedGuidance(eta=0.3, norm_threshold=2.0, momentum=-0.5)
    run, carried = Run(), 0
    for t in (0.2, 0.6):
        guided = part.combine(null, cond, x, t, 3.0, run)
        image = x + (1 - t) * cond
        carried = (1 - t) * (cond - null) - 0.5 * carried
        for b in range(2):
            d = carried[b] * min(1, 2 / carried[b].norm())
            direction = image[b] / image[b].norm()
            parallel = (d * direction).sum() * direction
            expected = image[b] + 2 * (d - parallel + 0.3 * parallel)
            torch.testing.assert_close(x[b] + (1 - t) * guided[b], expected)
    # With nothing taken away it is classifier-free guidance.
    plain = AdaptiveProjectedGuidance(eta=1.0).combine(null, cond, x, 0.4, 3.0, Run())
    torch.testing.assert_close(plain, ClassifierFreeGuidance().combine(null, cond, x, 0.4, 3.0, Run()))


@pytest.mark.parametrize('kind', KINDS)
def test_scale_one_and_times_outside_of_the_interval_are_the_condition_alone(net, weak, kind):
    kind = complete(kind, weak)
    alone = EulerFlowSampler(3, 1.0).sample(net, noise(), COND)
    assert torch.equal(EulerFlowSampler(3, 1.0, guidance=kind).sample(net, noise(), COND), alone)
    guided = EulerFlowSampler(3, 3.0, (0.4, 1.0), guidance=kind).sample(net, noise(), COND, NULL)
    assert relative_error(guided, alone) > 1e-3
    if not kind.get('zero_steps'):
        nowhere = EulerFlowSampler(3, 3.0, (0.4, 0.5), guidance=kind).sample(net, noise(), COND, NULL)
        assert relative_error(nowhere, alone) < 1e-5


@pytest.mark.parametrize('kind', KINDS[1:4])
@pytest.mark.parametrize('sampler', [AdamsFlowSampler, HeunFlowSampler])
def test_decoding_the_field_gives_the_guided_picture(tmp_path, net, kind, sampler):
    sampler = sampler(4, guidance_scale=3.0, guidance_interval=(0.0, 0.9), guidance=kind)
    image, field = sampler.sample(net, noise(), COND, NULL, record_field=True, field_dtype=torch.float32)
    assert relative_error(field.decode(), image) < 1e-5
    assert relative_error(field.picture(1).decode(), image[1:]) < 1e-5
    field.save(tmp_path / 'field.safetensors')
    loaded = FieldTrajectory.load(tmp_path / 'field.safetensors')
    whole = loaded.decode((16, 24), chunk=50)
    assert relative_error(whole, field.decode((16, 24))) < 1e-5
    assert relative_error(loaded.decode((16, 24), (3, 4, 9, 20)), whole[:, :, 3:9, 4:20]) < 1e-5


def test_a_field_file_with_other_numbers_than_its_guidance_takes_is_refused(tmp_path, net):
    sampler = EulerFlowSampler(3, 3.0, guidance=dict(type='CFGZeroStar'))
    _, field = sampler.sample(net, noise(), COND, NULL, record_field=True)
    path = tmp_path / 'field.safetensors'
    field.save(path)
    tensors = load_file(path)
    assert tensors['guidance'].shape == (2, 2)
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    save_file({**tensors, 'guidance': torch.zeros(1, 2)}, path, metadata)
    with pytest.raises(ValueError, match=r'its guidance has numbers of shape \(1, 2\), and CFGZeroStar took \(2, 2\)'):
        FieldTrajectory.load(path)


@pytest.mark.parametrize('kind', [APG, dict(type='CFGZeroStar')])
def test_an_interval_may_hold_the_end_of_the_path(net, kind):
    # Heun's last evaluation is there, where an image estimate is the picture itself.
    sampler = HeunFlowSampler(3, 3.0, (-1.0, 2.0), guidance=kind)
    image, field = sampler.sample(net, noise(), COND, NULL, record_field=True, field_dtype=torch.float32)
    assert image.isfinite().all()
    assert relative_error(field.decode(), image) < 1e-5
    null, cond, x = velocities()
    assert torch.equal(AdaptiveProjectedGuidance(0.3).combine(null, cond, x, 1.0, 3.0, Run()), cond)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(type='APG'), "type 'APG' is not known; use one of AdaptiveProjectedGuidance, "),
        (dict(type='EulerFlowSampler'), "type 'EulerFlowSampler' is not known"),
        (dict(zero_steps=1), 'type None is not known'),
        (dict(type='CFGZeroStar', steps=1), "guidance: .*unexpected keyword argument 'steps'"),
        ('CFGZeroStar', r"guidance='CFGZeroStar' must be a table such as dict\(type='CFGZeroStar'\)"),
    ],
)
def test_what_is_no_guidance_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=f'^.*{message}.*$'):
        AdamsFlowSampler(4).replace(guidance=wrong)


@pytest.mark.parametrize('solver', [EulerFlowSampler, HeunFlowSampler])
def test_the_first_steps_stand_still(net, solver):
    sampler = solver(4, 3.0, (0.0, 1.0), guidance=dict(type='CFGZeroStar', zero_steps=2))
    _, trajectory = sampler.sample(net, noise(), COND, NULL, return_trajectory=True)
    assert torch.equal(trajectory[2], trajectory[0])
    assert not torch.equal(trajectory[3], trajectory[2])
    with pytest.raises(ValueError, match='zero_steps=4 of the guidance leaves none of num_steps=4'):
        EulerFlowSampler(4, guidance=dict(type='CFGZeroStar', zero_steps=4))
    with pytest.raises(ValueError, match='zero_steps=-1'):
        CFGZeroStar(zero_steps=-1)
    with pytest.raises(ValueError, match='norm_threshold=-1'):
        AdaptiveProjectedGuidance(norm_threshold=-1)


def test_a_weaker_network_of_another_size_is_led_away_from(tmp_path, net, weak):
    sampler = EulerFlowSampler(2, 3.0, (-1.0, 1.0), guidance=dict(type='AutoGuidance', network=weak))
    x = noise()
    with torch.no_grad():
        for t in (0.0, 0.5):
            times = torch.full((2,), t)
            away, cond = weak(x, times, COND), net(x, times, COND)
            x = x + 0.5 * (away + 3 * (cond - away))
    assert relative_error(sampler.sample(net, noise(), COND), x) < 1e-5
    # From a file, for a network in another dtype.
    metadata = dict(architecture=weak.architecture())
    save_file(weak.state_dict(), tmp_path / 'weak.safetensors', dict(pixnerd=json.dumps(metadata)))
    part = AutoGuidance(str(tmp_path / 'weak.safetensors'))
    from_file = sampler.replace(guidance=part)
    assert relative_error(from_file.sample(net, noise(), COND), x) < 1e-5
    (tmp_path / 'weak.safetensors').unlink()
    assert relative_error(from_file.replace(num_steps=2).sample(build().double(), noise(), COND), x) < 1e-4
    with pytest.raises(ValueError, match='AutoGuidance asks two'):
        sampler.sample(net, noise(), COND, record_field=True)


def test_the_shorthand_and_the_long_form_agree():
    sampler = AdamsFlowSampler(guidance=dict(type='CFGZeroStar', scale=2.5, interval=(0.1, 0.7)))
    assert (sampler.guidance_scale, sampler.guidance_interval) == (2.5, (0.1, 0.7))
    changed = sampler.replace(guidance_scale=3.0)
    assert changed.guidance_scale == 3.0
    assert isinstance(changed.guidance, CFGZeroStar)
    assert isinstance(changed.replace(type='EulerFlowSampler').guidance, CFGZeroStar)
    assert 'guidance' not in AdamsFlowSampler().config()
    for kind in KINDS[1:]:
        config = AdamsFlowSampler(guidance=kind, guidance_scale=2.0).config()
        again = build_part(json.loads(json.dumps(config)), 'sampler')
        assert again.config() == config
        assert kind.items() <= config['guidance'].items()


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (dict(type='AutoGuidance', network='/etc/passwd'), 'network'),
        (dict(type='EulerFlowSampler'), "guidance 'EulerFlowSampler' is none of PixNerd"),
        (dict(type='evilmod.Guidance'), "guidance 'evilmod.Guidance' is none of PixNerd"),
        (dict(type='CFGZeroStar', zero_steps=-1), 'zero_steps'),
        ('CFGZeroStar', 'CFGZeroStar'),
    ],
)
def test_a_file_chooses_among_our_own_and_names_no_network(kind, message):
    with pytest.raises(ValueError, match=message):
        build_part(dict(type='EulerFlowSampler', guidance=kind), 'sampler')


def test_a_file_of_a_network_that_was_guided_by_a_weaker_one_says_what_is_missing(tmp_path, net, weak):
    sampling = EulerFlowSampler(2, 3.0, (-1.0, 1.0), guidance=dict(type='AutoGuidance', network=weak)).config()
    metadata = dict(architecture=net.architecture(), sampling=sampling, resolution=8)
    save_file(net.state_dict(), tmp_path / 'a.safetensors', dict(pixnerd=json.dumps(metadata)))
    pipe = load_pipeline(tmp_path / 'a.safetensors', device='cpu')
    with pytest.raises(ValueError, match='AutoGuidance needs the weaker network'):
        pipe(labels=[0])
    assert pipe(labels=[0], guidance=dict(type='AutoGuidance', network=weak))[0].size == (8, 8)
    assert pipe(labels=[0], guidance=dict(type='CFGZeroStar'), guidance_scale=2.0)


def test_a_config_names_one_and_a_misspelt_argument_is_found():
    config = ROOT / 'mm_configs/pixnerd_digits.py'
    options = {'model.sampler.guidance': dict(type='CFGZeroStar', zero_steps=1)}
    assert MODELS.build(load_config(config, options).model.sampler).guidance.zero_steps == 1
    options['model.sampler.guidance']['zero_step'] = 1
    with pytest.raises(ValueError, match='CFGZeroStar has no argument zero_step; did you mean zero_steps'):
        load_config(config, options)


def test_compiled_networks_are_guided_and_predict_alike(monkeypatch, weak):
    """Without the compiler itself: both networks go through it, and the time reaches decode."""
    asked = []

    def compile(function, **kwargs):
        asked.append(function.__name__)
        return function

    monkeypatch.setattr(torch, 'compile', compile)
    _compiled.cache_clear()
    torch.manual_seed(3)
    net = MODELS.build(
        dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, prediction='image')
    )
    nn.init.normal_(net.head.proj.weight, std=0.5)
    for kind in KINDS:
        settings = dict(guidance_scale=3.0, guidance=complete(kind, weak))
        plain = EulerFlowSampler(3, **settings).sample(net, noise(), COND, NULL)
        assert torch.equal(EulerFlowSampler(3, **settings, compile=True).sample(net, noise(), COND, NULL), plain)
        if kind['type'] != 'AutoGuidance':
            recorded = dict(record_field=True, field_dtype=torch.float32)
            _, field = EulerFlowSampler(3, **settings, compile=True).sample(net, noise(), COND, NULL, **recorded)
            assert relative_error(field.decode(), plain) < 1e-5
    assert set(asked) == {'forward', 'encode', 'decode'}
    _compiled.cache_clear()

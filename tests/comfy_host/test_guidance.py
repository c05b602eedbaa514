"""ComfyUI's own nodes of the guidance methods, on the velocities that ours get."""

import pytest
import torch

from .host import import_host, require_host

require_host()
import_host()

from comfy_nodes.nodes import PixNerdGuidanceInterval  # noqa: E402
from pixnerd_plugin.autoguidance import AutoGuidance  # noqa: E402
from pixnerd_plugin.models.backbones import PixNerdDiT  # noqa: E402
from pixnerd_plugin.sampling import AdaptiveProjectedGuidance, CFGZeroStar, EulerFlowSampler  # noqa: E402
from pixnerd_plugin.sampling.guidance import Run, guide  # noqa: E402

from .host import build_net, class_conditioning, randomize, save_net  # noqa: E402
from .native import SEED, SHIFT, empty, error, noise  # noqa: E402

SCALE = 3.0
TIMES = (0.2, 0.5, 0.9)


class Model:
    """What a node patches, and what core's sampler does with it for one step."""

    def __init__(self):
        self.options = {}

    def clone(self):
        return self

    def set_model_sampler_pre_cfg_function(self, function):
        self.before = function

    def set_model_sampler_post_cfg_function(self, function):
        self.after = function


def velocities():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 3, 16, 16, generator=generator).unbind() for _ in TIMES]


@pytest.mark.parametrize(
    ('eta', 'norm', 'momentum'), [(1.0, 0.0, 0.0), (0.3, 5.0, 0.0), (0.0, 8.0, -0.5), (-1, 3, 0.7)]
)
def test_projected_guidance_is_that_of_the_node(eta, norm, momentum):
    from comfy_extras.nodes_apg import APG

    node = APG.execute(Model(), eta, norm, momentum).args[0]
    ours, run = AdaptiveProjectedGuidance(eta, norm, momentum), Run()
    for t, (null, cond, x) in zip(TIMES, velocities(), strict=True):
        images = [x + (1 - t) * cond, x + (1 - t) * null]
        changed, null_image = node.before(dict(conds_out=images, sigma=torch.tensor([1 - t]), cond_scale=SCALE))
        guided = (guide(null_image, changed, SCALE) - x) / (1 - t)
        # The node adds g times the difference to the conditional image, and the paper, like ours, g - 1 times.
        assert error(ours.combine(null, cond, x, t, SCALE + 1, run), guided) <= 1e-5


def test_zero_star_is_that_of_the_node_but_for_the_place_of_its_factor():
    from comfy_extras.nodes_cfg import CFGZeroStar as Node

    node = Node.execute(Model()).args[0]
    for t, (null, cond, x) in zip(TIMES, velocities(), strict=True):
        run, images = Run(), dict(cond_denoised=x + (1 - t) * cond, uncond_denoised=x + (1 - t) * null)
        ours = CFGZeroStar().combine(null, cond, x, t, SCALE, run)
        denoised = guide(images['uncond_denoised'], images['cond_denoised'], SCALE)
        theirs = node.after(dict(images, input=x, cond_scale=SCALE, denoised=denoised))
        # The node multiplies the image estimate x + (1 - t) v by s, and the paper, like ours, the velocity.
        s = run.numbers[0].view(-1, 1, 1, 1)
        assert error(x + (1 - t) * ours + (1 - SCALE) * (s - 1) * x, theirs) <= 1e-5


@pytest.mark.parametrize('interval', [(-1.0, 1.0), (0.1, 0.9)])
def test_whole_runs_agree(model, net, conds, kind, interval):
    from comfy_extras.nodes_apg import APG
    from nodes import KSampler

    if interval[0] >= 0:
        model = PixNerdGuidanceInterval.execute(model, *interval).args[0]
    patched = APG.execute(model, 0.4, 20.0, -0.3).args[0]
    result = KSampler().sample(patched, SEED, 5, SCALE, 'euler', 'simple', *conds[1], empty())[0]['samples']
    guidance = AdaptiveProjectedGuidance(0.4, 20.0, -0.3)
    ours = EulerFlowSampler(5, SCALE + 1, interval, SHIFT[kind], guidance=guidance).sample(net, noise(), *conds[0])
    assert error(result, ours) <= 1e-4


@pytest.mark.parametrize('interval', [(-1.0, 1.0), (0.1, 0.9)])
def test_autoguidance_is_the_node_that_takes_two_models(tmp_path, interval):
    import comfy.sd
    from comfy_extras import nodes_custom_sampler as custom

    if not hasattr(custom, 'DualModelGuider'):
        pytest.skip('this ComfyUI has no DualModelGuider')
    head = dict(type='NeuralFieldHead', width=8, depth=1)
    weak = randomize(PixNerdDiT(dim=32, depth=1, num_heads=2, num_classes=5, head=head), seed=9).eval()
    net = build_net('class')
    models = []
    for name, network in (('strong', net), ('weak', weak)):
        save_net(network, tmp_path / f'{name}.safetensors')
        models.append(comfy.sd.load_diffusion_model(str(tmp_path / f'{name}.safetensors')))
    if interval[0] >= 0:
        models = [PixNerdGuidanceInterval.execute(model, *interval).args[0] for model in models]
    positive = class_conditioning(3)
    # The weaker network reads the same condition: both of the node's conditionings are the label.
    guider = custom.DualModelGuider.execute(models[0], positive, SCALE, models[1], positive).args[0]
    steps = custom.BasicScheduler.execute(models[0], 'simple', 5, 1.0).args[0]
    euler = custom.KSamplerSelect.execute('euler').args[0]
    seed = custom.RandomNoise.execute(SEED).args[0]
    result = custom.SamplerCustomAdvanced.execute(seed, guider, euler, steps, empty()).args[0]['samples']
    ours = EulerFlowSampler(5, SCALE, interval, SHIFT['class'], guidance=AutoGuidance(weak))
    drawn = ours.sample(net, noise(), torch.tensor([3]))
    assert error(result, drawn) <= 1e-4
    alone = EulerFlowSampler(5, 1.0).sample(net, noise(), torch.tensor([3]))
    assert error(alone, drawn) > 1e-2

"""Conditioning computed ahead, and compiled networks, against the plain network called step by step."""

import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler, HeunFlowSampler, compiled, precomputed
from tests.golden import relative_error

SETTINGS = dict(dim=32, depth=2, num_heads=4, patch_size=4, head=dict(type='NeuralFieldHead', width=8))


class Plain(nn.Module):
    """A network that offers nothing but its forward."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *args, **kwargs):
        return self.net(*args, **kwargs)


def network(kind: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    condition = dict(num_classes=5) if kind == 'class' else dict(text_dim=6, text_length=3, text_depth=1)
    net = MODELS.build(dict(type='PixNerdDiT', **SETTINGS | settings, **condition))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    return net


def conditions(kind: str, batch: int, nulls: int):
    if kind == 'class':
        return torch.arange(batch), torch.full((nulls,), 5)
    return torch.randn(batch, 3, 6), torch.randn(nulls, 3, 6)


@pytest.mark.parametrize('kind', ['class', 'text'])
@pytest.mark.parametrize(('batch', 'nulls'), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize('steps_at_once', [1, 2, 100])
def test_conditioning_computed_ahead_changes_nothing(monkeypatch, kind, batch, nulls, steps_at_once):
    net, (cond, null) = network(kind), conditions(kind, batch, nulls)
    one = net.condition(torch.zeros(batch + nulls), torch.cat((null, cond)), torch.float32).nbytes
    monkeypatch.setattr(precomputed, 'LIMIT_BYTES', one * steps_at_once)
    noise = torch.randn(batch, 3, 8, 12)
    sampler = AdamsFlowSampler(5, guidance_interval=(0.2, 0.9))
    expected = sampler.sample(Plain(net), noise, cond, null)
    assert relative_error(sampler.sample(net, noise, cond, null), expected) < 1e-5


@pytest.mark.parametrize('sampler', [HeunFlowSampler(3), EulerFlowSampler(3, guidance_scale=1.0)])
def test_every_solver_finds_its_times(sampler):
    net, (cond, null) = network('class'), conditions('class', 2, 1)
    noise = torch.randn(2, 3, 8, 8)
    assert relative_error(sampler.sample(net, noise, cond, null), sampler.sample(Plain(net), noise, cond, null)) < 1e-5


def test_the_null_condition_is_computed_once_for_all_pictures_and_steps(monkeypatch):
    net, (cond, null) = network('text'), conditions('text', 4, 1)
    rows = []
    refine = net.text_blocks[0].forward
    monkeypatch.setattr(net.text_blocks[0], 'forward', lambda h, *args: rows.append(len(h)) or refine(h, *args))
    AdamsFlowSampler(6).sample(net, torch.randn(4, 3, 8, 8), cond, null)
    # Five texts at the first time, to measure, and at the other five in one batch.
    assert rows == [5, 25]


needs_compiler = pytest.mark.skipif(not shutil.which('g++'), reason='inductor needs a C++ compiler, g++')


# Unguided at first, then guided: two batch sizes, a compilation each; inductor takes half a minute for one.
@pytest.mark.parametrize(
    ('backend', 'depth', 'guidance_scale'),
    [('aot_eager', 2, 4.0), pytest.param('inductor', 1, 1.0, marks=[pytest.mark.slow, needs_compiler])],
)
def test_compiled_sampling_gives_the_same_picture(monkeypatch, backend, depth, guidance_scale):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend, fullgraph=True))
    compiled._compiled.cache_clear()
    net, (cond, null) = network('text', depth=depth), conditions('text', 2, 1)
    names = list(net.state_dict())
    arguments = dict(num_steps=3, guidance_scale=guidance_scale, guidance_interval=(0.2, 1.0))
    noise = torch.randn(2, 3, 8, 12)
    image = EulerFlowSampler(**arguments, compile=True).sample(net, noise, cond, null)
    assert relative_error(image, EulerFlowSampler(**arguments).sample(net, noise, cond, null)) < 1e-5
    assert list(net.state_dict()) == names
    compiled._compiled.cache_clear()


@pytest.fixture
def compilations(monkeypatch):
    """Counts the graphs that are compiled."""
    counter = CompileCounterWithBackend('eager')
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter, fullgraph=True))
    compiled._compiled.cache_clear()
    torch.compiler.reset()
    yield counter
    compiled._compiled.cache_clear()


@pytest.mark.slow
def test_one_compilation_serves_many_sizes(compilations):
    net = network('text')
    sampler = EulerFlowSampler(3, guidance_interval=(0.2, 1.0), compile=True)
    sizes = ((2, 8, 12), (2, 12, 8), (2, 16, 16), (3, 16, 24), (5, 8, 8), (2, 20, 24), (2, 64, 72), (4, 64, 48))
    for batch, height, width in sizes:
        sampler.sample(net, torch.randn(batch, 3, height, width), *conditions('text', batch, 1))
    # One for the first batch, guided and not, each; then one for any batch and one for any size as well.
    assert compilations.frame_count <= 4
    for nulls in (2, 1):
        sampler.sample(net, torch.randn(nulls, 3, 8, 8), *conditions('text', nulls, nulls))
    # A batch of one is a case of its own.
    assert compilations.frame_count <= 5


@pytest.mark.slow
def test_a_fixed_grid_of_tokens_is_compiled_for_many_sizes(compilations):
    net, (cond, null) = network('class'), conditions('class', 2, 1)
    sampler = EulerFlowSampler(2, guidance_scale=1.0, compile=True)
    for side in (8, 16, 24, 32, 40):
        sampler.sample(net, torch.randn(2, 3, side, side), cond, null, token_grid=(2, 2))
    # The first, where the transformer reads the picture itself, and two for pictures that it reads resampled.
    assert compilations.frame_count <= 3


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['class', 'text'])
def test_blocks_compiled_one_by_one_share_a_graph(kind):
    torch.compiler.reset()
    counter = CompileCounterWithBackend('eager')
    net, (cond, _) = network(kind, depth=4), conditions(kind, 2, 1)
    x, t, names = torch.randn(2, 3, 8, 12), torch.rand(2), list(net.state_dict())

    def velocity_and_gradient():
        v = net(x, t, cond)
        return v.detach(), torch.autograd.grad(v.square().sum(), net.blocks[-1].attn.qkv.weight)[0]

    expected = velocity_and_gradient()
    net.compile(regional=True, backend=counter, fullgraph=True)
    for found in (velocity_and_gradient(), velocity_and_gradient()):
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < 1e-5
    # One for the blocks, one for the head, and one for the block that refines the text.
    assert counter.frame_count == 2 + (kind == 'text')
    assert list(net.state_dict()) == names
    torch.compiler.reset()

"""Muon and AdamW as one optimiser."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

import pixnerd_plugin.engine  # noqa: F401
from pixnerd_plugin.engine.muon import MuonAdamW
from pixnerd_plugin.registry import MODELS
from tests.training import assert_same_training_state, load, logged, train

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch before 2.9 has no Muon')
MUON = dict(
    optim_wrapper__constructor='MuonConstructor',
    optim_wrapper__optimizer=dict(_delete_=True, type='MuonAdamW', lr=1e-2, weight_decay=0.1),
)
BACKBONE = dict(
    type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=8, num_classes=10,
    head=dict(type='NeuralFieldHead', width=4, depth=1),
)  # fmt: skip


def wrapper_of(net, **options):
    settings = dict(
        type='FiniteOptimWrapper', constructor='MuonConstructor', optimizer=dict(type='MuonAdamW', lr=1e-2), **options
    )
    with DefaultScope.overwrite_default_scope('pixnerd'):
        return build_optim_wrapper(net, settings)


def test_the_matrices_of_the_blocks_are_muons_and_nothing_else():
    net = MODELS.build(BACKBONE)
    net.blocks[0].mlp.down.weight.requires_grad_(False)
    names = {parameter: name for name, parameter in net.named_parameters()}
    muon, rest = wrapper_of(net).optimizer.param_groups
    assert {names[p].removeprefix('blocks.0.') for p in muon['params']} == {
        'attn.qkv.weight', 'attn.proj.weight', 'mlp.gate_up.weight',
    }  # fmt: skip
    trained = sum(p.requires_grad for p in net.parameters())
    assert len(muon['params']) + len(rest['params']) == trained == len(names) - 1


def test_a_step_is_torchs_muon_and_adamw_side_by_side():
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(4))] for _ in range(2))
    groups = [dict(params=ours[:1], muon=True), dict(params=ours[1:], muon=False)]
    optimizer = MuonAdamW(groups, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), momentum=0.7)
    muon = torch.optim.Muon(theirs[:1], lr=0.1, weight_decay=0.2, momentum=0.7, adjust_lr_fn='match_rms_adamw')
    adamw = torch.optim.AdamW(theirs[1:], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    for step in range(4):
        if step == 2:  # as schedulers and a resumed run do
            for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
                group['lr'] = 0.05
            optimizer.load_state_dict(optimizer.state_dict())
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for one in (optimizer, muon, adamw):
            one.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_with_accumulation_and_clipping_is_the_uninterrupted_one(tmp_path):
    options = dict(MUON, optim_wrapper__accumulative_counts=2, optim_wrapper__clip_grad=dict(max_norm=0.5))
    train(tmp_path / 'whole', **options)
    train(tmp_path / 'parts', **options, stop_at=4)
    train(tmp_path / 'parts', **options, resume=True)
    whole = load(tmp_path / 'whole/iter_6.pth')
    assert_same_training_state(whole, load(tmp_path / 'parts/iter_6.pth'))
    assert logged(tmp_path / 'whole') == logged(tmp_path / 'parts')
    kinds = [set(state) for state in whole['optimizer']['state'].values()]
    assert {'momentum_buffer'} in kinds
    assert {'step', 'exp_avg', 'exp_avg_sq'} in kinds


@pytest.mark.parametrize('trained', ['', 'head.'])  # the head alone: no matrix is Muon's
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(trained):
    net = MODELS.build(BACKBONE)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    wrapper = wrapper_of(net, clip_grad=dict(max_norm=1.0))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loss = sum(p.sum() for p in net.parameters())
    wrapper.update_params(loss * float('nan'))
    assert wrapper.skipped_steps == 1
    # Without Muon's, AdamW itself leaves the step out, and has made room for its moments.
    assert trained or not wrapper.optimizer.state
    assert not any(value.any() for state in wrapper.optimizer.state.values() for value in state.values())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize('reset', [False, True])
def test_moments_of_other_groups_are_refused_in_one_line(tmp_path, reset):
    train(tmp_path, **MUON, stop_at=4)
    path = tmp_path / 'iter_4.pth'
    checkpoint = load(path)
    muon, rest = checkpoint['optimizer']['param_groups'][:2]
    muon['params'].append(rest['params'].pop())  # as an earlier version had them
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r'groups of \[.*\] parameters and .*; undo the change of optim_wrapper, or'):
        train(tmp_path, **MUON, resume=True, reset_schedule=reset)


def test_mistakes_are_named(monkeypatch):
    parameters = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ValueError, match=r"needs optim_wrapper\.constructor='MuonConstructor'"):
        MuonAdamW(parameters)
    with pytest.raises(ValueError, match='paramwise_cfg does not work with MuonConstructor'):
        wrapper_of(MODELS.build(BACKBONE), paramwise_cfg=dict(bias_lr_mult=2.0))
    monkeypatch.delattr(torch.optim, 'Muon')
    with pytest.raises(ValueError, match=r'MuonAdamW needs torch 2\.9 or newer, and this is'):
        MuonAdamW([dict(params=parameters, muon=True)])

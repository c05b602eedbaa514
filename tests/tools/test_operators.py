"""Kernels that one forward asks a GPU for: what eager mode costs there, counted without one."""

import importlib

import pytest
import torch

from tests.training import ROOT


@pytest.fixture
def operators(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return importlib.import_module('benchmarks.operators')


def test_a_step_of_sampling_xl16_asks_for_few_kernels(operators):
    counts = {
        ahead: operators.count_ours(operators.SHAPES['xl16'], 256, 1, torch.bfloat16, ahead) for ahead in (True, False)
    }
    # Samplers compute ahead what depends on time and condition alone.
    assert sum(counts[True].values()) <= 505
    assert sum(counts[False].values()) <= 550
    # 26 blocks of four norms, the four of the field and its last.
    assert counts[True]['rms_norm'] == 26 * 4 + 4 + 1
    assert counts[True]['attention'] == 26


def test_tables_are_counted_at_the_first_forward_only(operators):
    counts = operators.count_ours(operators.SHAPES['tiny'], 64, 1, torch.float32)
    assert not {'aten.linspace', 'aten.arange'} & counts.keys()
    assert counts['aten.cos'] == counts['aten.sin'] == 1  # of the time


def test_the_kernel_of_the_field_saves_launches_and_what_they_move(operators):
    xl = operators.SHAPES['xl16']
    counts = [operators.count_ours(xl, 256, 1, torch.bfloat16, True, kernel) for kernel in (False, True)]
    assert counts[1]['field'] == 1
    assert sum(counts[0].values()) - sum(counts[1].values()) == 24
    for trained, least in ((False, 18), (True, 7)):
        of_both = [operators.count_field(xl, 256, 1, torch.bfloat16, trained, kernel) for kernel in (False, True)]
        (launches, moved), (launches_of_one, moved_by_one) = of_both
        assert launches >= 13 * launches_of_one
        assert moved >= least * moved_by_one
    # The weights alone: 256 patches, 4 blocks, two weights of 64x128 in two bytes.
    assert moved_by_one > 256 * 4 * 2 * 64 * 128 * 2

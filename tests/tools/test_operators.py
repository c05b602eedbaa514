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

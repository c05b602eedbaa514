"""tools/analysis_tools/field_resolution.py on networks that know nothing."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin.registry import MODELS
from tests.training import ROOT

TOOL = ROOT / 'tools/analysis_tools/field_resolution.py'


@pytest.fixture
def run(monkeypatch, capsys):
    def run_tool(*arguments):
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr().out

    return run_tool


def save(path):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=10, head=head))
    sampling = dict(type='AdamsFlowSampler', num_steps=2, guidance_scale=2.0)
    metadata = dict(architecture=net.architecture(), sampling=sampling, resolution=8)
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(metadata)})
    return path


def test_comparing_prints_numbers_and_draws(run, tmp_path):
    net = save(tmp_path / 'net.safetensors')
    printed = run('compare', net, net, '--num', 4, '--samples', 2, '--out', tmp_path / 'out')
    rows = [line.split('|')[1:-1] for line in printed.splitlines() if line.startswith('| 4x |')]
    psnr = {(row[1].strip(), row[2].strip()): [float(value) for value in row[3:]] for row in rows if len(row) == 7}
    # Both networks are the same one here, and their velocity is zero.
    fine = [values for (start, method), values in psnr.items() if start == 'bicubic' and 'finer' in method]
    assert fine[0] == fine[1]
    assert all(np.diff(fine[0]) > 0)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'ways.png', 'sizes.png'}


def test_preparing_keeps_large_enough_pictures_as_squares(run, tmp_path):
    for index, size in enumerate([(60, 40), (30, 80), (32, 32), (50, 50)]):
        Image.new('RGB', size).save(tmp_path / f'{index}.png')
    assert '3 of 4' in run('prepare', tmp_path, tmp_path / 'out', '--side', 32)
    assert len(list((tmp_path / 'out/train/photo').iterdir())) == 2
    assert [Image.open(path).size for path in (tmp_path / 'out/test/photo').iterdir()] == [(32, 32)]

"""tools/analysis_tools/field_resolution.py on networks that know nothing."""

import importlib
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin import load_backbone
from pixnerd_plugin.registry import MODELS
from tests.training import ROOT

TOOL = ROOT / 'tools/analysis_tools/field_resolution.py'


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(TOOL.parent)

    def run_tool(*arguments):
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr().out

    return run_tool


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    return save(tmp_path_factory.mktemp('net') / 'net.safetensors')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A network whose velocities are not zero."""
    return save(tmp_path_factory.mktemp('net') / 'net.safetensors', std=0.5)


def save(path, std=0.0):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=10, head=head))
    torch.nn.init.normal_(net.head.proj.weight, std=std)
    sampling = dict(type='AdamsFlowSampler', num_steps=2, guidance_scale=2.0)
    metadata = dict(architecture=net.architecture(), sampling=sampling, resolution=8)
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(metadata)})
    return path


def test_comparing_prints_numbers(run, net):
    printed = run('compare', net, net, '--num', 4, '--samples', 2)
    estimates, looks = printed.split('Steps across borders')
    rows = [row for row in table(estimates) if row[0] == '4x']
    found = {(row[1], row[2]): [float(value) for value in row[3:]] for row in rows}
    assert len(found) == 11
    # Both networks are the same one here, and their velocity is zero.
    fine = [values for (start, method), values in found.items() if start == 'bicubic' and 'field' in method]
    assert fine[0] == fine[1]
    assert all(np.diff(fine[0][:3]) > 0)
    assert all(np.diff(fine[0][3:]) > 0)
    seams = {row[0]: [float(value) for value in row[1:]] for row in table(looks)[1:]}
    assert len(seams) == 9
    assert seams['one density: the field, joined'] == seams['several densities: the field, hard borders']


@pytest.fixture
def ways(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    return importlib.import_module('resolution_ways')


def test_edges_are_counted_by_how_sharp_they_are_and_grain_is_not(ways):
    edge = torch.full((1, 3, 64, 64), -0.5)
    edge[..., 32:] = 0.5
    for width in (2, 4, 8):
        ramp = ((torch.arange(64) - 31.5) / width).clamp(-0.5, 0.5).expand_as(edge)
        assert ways.edge_share(ramp, edge) == pytest.approx(1 / width)
    assert ways.edge_share(edge / 2, edge) == pytest.approx(1 / 2)
    assert ways.edge_share(edge.mT, edge) == 0
    torch.manual_seed(0)
    grain = 0.1 * torch.randn(edge.shape)
    assert ways.edge_share(edge + grain, edge) == pytest.approx(1, abs=0.05)
    assert ways.edge_share(grain, edge) == pytest.approx(0, abs=0.05)


def test_the_estimate_at_base_size_is_that_of_one_step(ways, trained):
    net = load_backbone(trained)
    base, noise = torch.randn(2, 2, 3, 8, 8)
    labels, t = torch.tensor([1, 2]), 0.6
    with torch.no_grad():
        x = t * base + (1 - t) * noise
        expected = x + (1 - t) * net(x, torch.full((2,), t), labels)
        assert torch.equal(ways.one_step(net, base, noise, t, labels), expected)
        torch.testing.assert_close(ways.paper_step(net, base, noise, t, labels, 2), expected)
        fine = ways.one_step(net, base, noise, t, labels, ways.upsample(base, 4), 4)
    # Joined: no larger steps at the border of the two patches than beside it.
    steps = fine.diff(dim=3).abs().mean((0, 1, 2))
    assert steps[15] < 2 * steps[[14, 16]].mean()


@pytest.mark.parametrize('alignment', ['centers', 'corners'])
def test_seams_are_measured_and_drawn(run, trained, tmp_path, alignment):
    options = ['--shown', 2, '--scale', 4, '--alignment', alignment, '--out', tmp_path]
    printed = run('seams', trained, '--num', 4, '--samples', 2, *options)
    assert f'{alignment}-aligned' in printed
    rows = {row[0]: [float(value) for value in row[1:]] for row in table(printed)[1:]}
    assert len(rows) == 7
    for way in ('decoded', 'sampled at 2x2 tokens'):
        hard, joined = rows[f'{way}, blend=0'], rows[f'{way}, blend=0.5']
        assert hard[0] == joined[0]
        assert joined[3] < hard[3]
    with Image.open(tmp_path / 'seams.png') as sheet:
        assert sheet.size == (2 * 32 + 4, 4 * (32 + 18))


def table(printed):
    """The cells of each row of the table that was printed."""
    lines = [line for line in printed.splitlines() if line.startswith('|') and '---' not in line]
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]


def test_sheets_show_every_way_at_every_size(run, net, tmp_path):
    printed = run('sheets', net, net, '--num', 2, '--out', tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'sheet_0.png', 'sheet_1.png'}
    assert printed.count('figure: ') == 2
    with Image.open(tmp_path / 'sheet_0.png') as sheet:
        assert sheet.size == (4 * 64 + 3 * 4, 6 * (64 + 18))


def test_native_sizes_are_drawn_beside_the_fixed_grid(run, net, tmp_path):
    printed = run('native', net, '--sizes', '16x16', '8x16', '--num', 2, '--shown', 1, '--out', tmp_path)
    rows = [[cell.strip() for cell in line.split('|')[1:3]] for line in printed.splitlines()[2:] if line[0] == '|']
    assert rows == [['8x8', '2x2'], ['16x16', '4x4'], ['16x16', '2x2'], ['8x16', '2x4'], ['8x16', '2x2']]
    assert (tmp_path / 'native.png').is_file()


def test_preparing_keeps_large_enough_pictures_as_squares(run, tmp_path):
    for index, size in enumerate([(60, 40), (30, 80), (32, 32), (50, 50)]):
        Image.new('RGB', size).save(tmp_path / f'{index}.png')
    assert '3 of 4' in run('prepare', tmp_path, tmp_path / 'out', '--side', 32)
    assert len(list((tmp_path / 'out/train/photo').iterdir())) == 2
    assert [Image.open(path).size for path in (tmp_path / 'out/test/photo').iterdir()] == [(32, 32)]

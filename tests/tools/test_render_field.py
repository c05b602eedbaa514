"""tools/render_field.py as a user calls it."""

import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pixnerd_plugin.images import to_uint8
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import EulerFlowSampler, FieldTrajectory
from tests.training import ROOT


@pytest.fixture(scope='module')
def field(tmp_path_factory):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, head=head))
    torch.nn.init.normal_(net.head.proj.weight)
    sampler = EulerFlowSampler(2, guidance_scale=1.0)
    _, field = sampler.sample(net, torch.randn(2, 3, 8, 12), torch.tensor([0, 1]), record_field=True)
    path = tmp_path_factory.mktemp('field') / 'field.safetensors'
    field.save(path)
    return path


@pytest.fixture
def render(field, monkeypatch):
    """Run the command in this process; returns its error, or None."""

    def run(*arguments, source=field):
        monkeypatch.setattr(sys, 'argv', ['render_field.py', str(source), *map(str, arguments), '--device', 'cpu'])
        try:
            runpy.run_path(str(ROOT / 'tools/render_field.py'), run_name='__main__')
        except SystemExit as end:
            return end.code

    return run


def expected(field, picture=0, **options):
    return to_uint8(FieldTrajectory.load(field).picture(picture).decode(**options))[0].astype(int)


def test_a_png_holds_the_decoded_picture(field, render, tmp_path, capsys):
    assert render(tmp_path / 'a.png', '--size', '40x50', '--tile', 16, '--picture', 1) is None
    assert re.search(r'40x50 pixels in .*a\.png; memory at its peak: \d+ MiB', capsys.readouterr().out)
    pixels = np.asarray(Image.open(tmp_path / 'a.png')).astype(int)
    assert np.abs(pixels - expected(field, 1, size=(40, 50))).max() <= 1


def test_a_tiff_is_written_tile_by_tile(field, render, tmp_path):
    tifffile = pytest.importorskip('tifffile')
    options = ('--size', '100x150', '--region', '20,30,90,150', '--grain', 0.3, '--seed', 4, '--tile', 32)
    assert render(tmp_path / 'a.tif', *options) is None
    with tifffile.TiffFile(tmp_path / 'a.tif') as file:
        assert file.pages[0].tile == (32, 32)
        pixels = file.asarray().astype(int)
    same = expected(field, size=(100, 150), region=(20, 30, 90, 150), grain=0.3, seed=4)
    assert np.abs(pixels - same).max() <= 1


def test_borders_can_be_hard(field, render, tmp_path):
    size = (64, 96)
    assert render(tmp_path / 'a.png', '--size', '64x96', '--blend', 0) is None
    pixels = np.asarray(Image.open(tmp_path / 'a.png')).astype(int)
    assert np.abs(pixels - expected(field, size=size, blend=0)).max() <= 1
    assert np.abs(pixels - expected(field, size=size)).max() > 5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['a.jpg'], r'\.png'),
        (['a.png', '--size', '8000x8000'], 'tiled TIFF'),
        (['a.png', '--region', '0,0,9,9'], 'region'),
        (['a.png', '--picture', '2'], 'picture 2'),
        (['a.png', '--blend', '2'], r'blend=2.0 must be from 0 \(hard borders\) to 1 base pixels'),
        (['a.tif', '--tile', '20'], 'multiple of 16'),
        (['a.png', '--size', '9x12', '--alignment', 'corners'], 'multiple'),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(render, tmp_path, arguments, message):
    error = render(tmp_path / arguments[0], *arguments[1:])
    assert error.startswith('error: ')
    assert '\n' not in error
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())

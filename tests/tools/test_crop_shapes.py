"""CIFAR-10 cut to three shapes with captions."""

import runpy
from argparse import Namespace

import numpy as np
from PIL import Image

from tests.training import ROOT


def test_pictures_are_cut_at_their_centre_and_captioned(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for split in ('train', 'test'):
        (tmp_path / 'cifar' / split / 'cat').mkdir(parents=True)
        for index in range(3):
            Image.fromarray(pixels).save(tmp_path / 'cifar' / split / 'cat' / f'{index}.png')
    tool = runpy.run_path(str(ROOT / 'tools/analysis_tools/crop_shapes.py'))
    tool['main'](Namespace(folder=tmp_path / 'cifar', out=tmp_path / 'out'))
    cut = {path.name: np.asarray(Image.open(path)) for path in sorted((tmp_path / 'out/train').glob('*.png'))}
    assert np.array_equal(cut['cat_0.png'], pixels[12:20])
    assert np.array_equal(cut['cat_1.png'], pixels[:, 12:20])
    assert np.array_equal(cut['cat_2.png'], pixels[8:24, 8:24])
    assert {path.read_text() for path in (tmp_path / 'out/train').glob('*.txt')} == {'cat'}
    assert {shape: len(list((tmp_path / 'out/test' / shape).iterdir())) for shape in ('wide', 'tall', 'square')} == {
        'wide': 3,
        'tall': 3,
        'square': 3,
    }

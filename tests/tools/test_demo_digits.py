"""The end of `make demo-classes`, on a model that has hardly trained."""

import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from tests.training import ROOT, train

SCRIPT = ROOT / 'tools/demo_digits.py'


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    train(folder, train_cfg__max_iters=4)
    return folder


@pytest.mark.slow
def test_pictures_curve_and_score(work_dir, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['demo_digits.py', '--work-dir', str(work_dir)])
    runpy.run_path(str(SCRIPT), run_name='__main__')
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r'recognised: \d+\.\d % of 500', lines[-1])
    assert float(re.search(r'([\d.]+)% of held-out real digits', '\n'.join(lines))[1]) >= 96
    for name in ('grid.png', 'zoom.png', 'loss.png'):
        assert np.asarray(Image.open(work_dir / name)).std() > 0


def test_real_digits_are_recognised():
    demo = runpy.run_path(str(SCRIPT))
    from pixnerd_plugin.datasets import DigitsDataset

    dataset = DigitsDataset(size=32, split='test')
    digits = [dataset[i] for i in range(50)]
    images, labels = np.stack([digit['img'] for digit in digits]), np.array([digit['label'] for digit in digits])
    assert demo['recognise'](images, labels) > 0.95
    assert demo['recognise'](np.zeros_like(images), labels) < 0.3


def test_without_a_checkpoint_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['demo_digits.py', '--work-dir', str(tmp_path)])
    with pytest.raises(SystemExit, match='make demo-classes'):
        runpy.run_path(str(SCRIPT), run_name='__main__')

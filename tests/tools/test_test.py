"""tools/test.py as a user calls it, on a network that knows nothing."""

import json
import re
import runpy
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.evaluation import generate
from pixnerd_plugin.registry import MODELS
from tests.evaluation import fakes
from tests.training import CONFIG, DATA, ROOT, run_tool

TINY = ['--cfg-options', 'feature_extractor.type=TinyFeatures']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DATA))
        net = MODELS.build(load_config(CONFIG).model.backbone)
    torch.nn.init.normal_(net.head.proj.weight)
    path = tmp_path_factory.mktemp('net') / 'net.safetensors'
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(dict(architecture=net.architecture()))})
    return path


@pytest.fixture
def test(monkeypatch, capsys, checkpoint):
    """Run the command in this process: its exit code and what it printed."""
    monkeypatch.syspath_prepend(str(DATA))

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['test.py', str(CONFIG), str(checkpoint), *map(str, arguments)])
        code = None
        try:
            runpy.run_path(str(ROOT / 'tools/test.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run


def samples(work_dir):
    return np.load(work_dir / 'test/samples.npz')['arr_0']


def test_an_interrupted_run_goes_on_and_pictures_do_not_depend_on_the_batch(test, tmp_path, monkeypatch):
    code, _ = test('--num-samples', 25, '--batch-size', 25, '--work-dir', tmp_path / 'whole')
    assert code is None
    drawn, draw = [], generate.draw_images

    def interrupted(model, conditions, seeds, size):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seeds)
        return draw(model, conditions, seeds, size)

    monkeypatch.setattr(generate, 'draw_images', interrupted)
    code, _ = test('--num-samples', 25, '--batch-size', 4, '--work-dir', tmp_path / 'parts')
    assert code == 'interrupted'
    monkeypatch.setattr(generate, 'draw_images', draw)
    code, printed = test('--num-samples', 25, '--batch-size', 7, '--work-dir', tmp_path / 'parts')
    assert code is None
    assert '8 of 25 samples are there already' in printed
    np.testing.assert_array_equal(samples(tmp_path / 'whole'), samples(tmp_path / 'parts'))
    assert samples(tmp_path / 'whole').shape == (25, 16, 16, 3)
    assert len(np.unique(samples(tmp_path / 'whole').reshape(25, -1), axis=0)) == 25

    code, _ = test('--num-samples', 25, '--seed', 3, '--work-dir', tmp_path / 'parts')
    assert 'holds samples of another run: seed was 0 and is now 3' in code


def test_a_reference_gives_the_metrics(test, tmp_path):
    arguments = ['--num-samples', 30, '--reference', 'digits:test', '--work-dir', tmp_path, *TINY]
    code, printed = test(*arguments)
    assert code is None
    metrics = json.loads((tmp_path / 'test/metrics.json').read_text())
    assert {'Frechet distance', 'sFID', 'IS', 'precision', 'recall'} <= metrics.keys()
    assert metrics['num_samples'] == 30
    assert f'{metrics["Frechet distance"]:.4f}' in printed


def test_mistakes_are_found_before_anything_is_drawn(test, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, 'draw_images', None)
    large = fakes.save_npz(tmp_path / 'large.npz', arr_0=fakes.pictures(40, 32))
    mixed = tmp_path / 'mixed'
    mixed.mkdir()
    for index, height in enumerate([16] * 13 + [9]):
        Image.new('RGB', (16, height)).save(mixed / f'{index:02d}.png')
    few = ['--num-samples', 12, '--reference', 'digits:test']
    for arguments, message in {
        'size': (['--num-samples', 30, '--reference', large], 'are 32x32, and those to compare them with 16x16'),
        'few': (few, '--num-samples has 12 pictures.* at least 13'),
        'none': (['--num-samples', 0], '--num-samples must be at least 1, got 0'),
        'mixed': (['--num-samples', 30, '--reference', mixed], '9x16 .* 16x16'),
    }.values():
        code, _ = test(*arguments, '--work-dir', tmp_path / 'out', *TINY)
        assert code is not None
        assert re.search(message, code), code
        assert '\n' not in code
    assert not (tmp_path / 'out').exists()


def test_pictures_that_are_not_finite_are_refused(test, tmp_path, monkeypatch, checkpoint):
    load = generate.load_model

    def broken(*arguments):
        model = load(*arguments)
        model.backbone.head.proj.bias.data.fill_(float('nan'))
        return model

    monkeypatch.setattr(generate, 'load_model', broken)
    code, _ = test('--num-samples', 4, '--work-dir', tmp_path)
    assert 'the picture of seed 0 (4 of 4 in its batch) has NaN or infinity' in code
    assert not (tmp_path / 'test/samples.npz').exists()


@pytest.mark.slow
def test_two_processes_draw_what_one_does(test, tmp_path, checkpoint):
    test('--num-samples', 11, '--work-dir', tmp_path / 'one')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    arguments = ['--num-samples', '11', '--batch-size', '3', '--work-dir', tmp_path / 'two']
    done = run_tool('tools/dist_test.sh', CONFIG, checkpoint, '2', *arguments, PORT=str(port))
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(samples(tmp_path / 'one'), samples(tmp_path / 'two'))


def test_samples_of_another_dtype_are_others(test, tmp_path):
    arguments = ('--num-samples', 4, '--work-dir', tmp_path, '--pack')
    assert test(*arguments)[0] is None
    code, out = test(*arguments, '--dtype', 'bfloat16')
    assert 'computing in bfloat16 on cpu' in out
    assert '--overwrite' in str(code)

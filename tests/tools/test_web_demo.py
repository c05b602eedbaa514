"""The parts of tools/web_demo.py that need no browser."""

import io
import json
import re
import runpy
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.registry import MODELS
from tests.training import ROOT

DEMO = runpy.run_path(str(ROOT / 'tools/web_demo.py'), run_name='web_demo')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3, head=head))
    torch.nn.init.normal_(net.head.proj.weight)
    path = tmp_path_factory.mktemp('weights') / 'net.safetensors'
    metadata = dict(architecture=net.architecture(), resolution=8, class_names=['zero', 'one', 'two'])
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(metadata)})
    return str(path)


@pytest.fixture(scope='module')
def pipe(checkpoint):
    return load_pipeline(checkpoint, device='cpu')


def test_drawing_gives_picture_animation_and_field(pipe):
    seen = []
    picture, gif, field = DEMO['draw'](
        pipe, '1', '', (8, 12), 3, 2, 2.0, 5, lambda done, total: seen.append((done, total))
    )
    assert picture.shape == (8, 12, 3)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with Image.open(io.BytesIO(gif)) as animation:
        assert animation.n_frames == 4
    assert field.size == (8, 12)


def test_a_network_of_mean_velocities_takes_its_own_steps(tmp_path):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    sizes = dict(dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3)
    net = MODELS.build(dict(type='PixNerdDiT', **sizes, step_end=True, head=head))
    torch.nn.init.normal_(net.head.proj.weight)
    torch.nn.init.normal_(net.step_embed.fc2.weight)
    meta = dict(architecture=net.architecture(), resolution=8)
    save_file(net.state_dict(), tmp_path / 'net.safetensors', {'pixnerd': json.dumps(meta)})
    pipe = load_pipeline(tmp_path / 'net.safetensors', device='cpu')
    picture, _, field = DEMO['draw'](pipe, '1', '', (8, 8), 1, 2, 4.0, 5)
    assert field.sampler.config()['type'] == 'MeanFlowSampler'
    assert (picture == np.asarray(pipe([1], seeds=5, num_steps=1)[0])).all()


def test_zooming_decodes_a_window_of_constant_size(pipe):
    *_, field = DEMO['draw'](pipe, '1', '', (8, 8), 2, 1, 1.0, 0)
    whole = DEMO['zoom'](field, 1, (0.5, 0.5), 0, 0.5)
    corner = DEMO['zoom'](field, 2, (0, 1), 0, 0.5)
    assert whole.shape == corner.shape == (DEMO['VIEW'], DEMO['VIEW'], 3)
    # Twice as fine, so the mean of four pixels is about the pixel of the whole there.
    half = DEMO['VIEW'] // 2
    mean = corner.reshape(half, 2, half, 2, 3).mean((1, 3))
    assert np.abs(mean - whole[:half, half:]).mean() < 8


def test_patches_are_joined_as_far_as_the_visitor_asks(pipe):
    *_, field = DEMO['draw'](pipe, '1', '', (8, 8), 2, 1, 1.0, 0)
    hard, joined = (DEMO['zoom'](field, 1, (0.5, 0.5), 0, blend).astype(int) for blend in (0, 0.5))
    # Two patches a side: the border is in the middle, and half a base pixel around it is shared.
    middle, shared = DEMO['VIEW'] // 2, DEMO['VIEW'] // 16
    step = [np.abs(pixels[middle] - pixels[middle - 1]).mean() for pixels in (hard, joined)]
    assert step[1] < step[0] / 4
    assert (hard[: middle - shared, : middle - shared] == joined[: middle - shared, : middle - shared]).all()


def test_a_picture_larger_than_the_view_is_shown_whole():
    assert DEMO['window']((512, 384), 1, (0.5, 0.5)) == ((512, 384), (0, 0, 512, 384))


@pytest.mark.parametrize('factor', [1, 1.5, 7, 64])
@pytest.mark.parametrize('center', [(0, 0), (0.3, 0.9), (1, 1)])
def test_windows_lie_inside_the_picture(factor, center):
    (height, width), (top, left, bottom, right) = DEMO['window']((32, 48), factor, center)
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width
    assert abs((right - left) - DEMO['VIEW']) <= 1


def test_a_model_of_prompts_wants_its_text_encoder(tmp_path, monkeypatch):
    head = dict(type='NeuralFieldHead', width=4, depth=1)
    net = MODELS.build(
        dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, text_dim=40, text_depth=1, head=head)
    )
    save_file(
        net.state_dict(), tmp_path / 'net.safetensors', {'pixnerd': json.dumps(dict(architecture=net.architecture()))}
    )
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', str(tmp_path / 'net.safetensors'), '--device', 'cpu'])
    monkeypatch.setitem(sys.modules, 'gradio', types.ModuleType('gradio'))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools/web_demo.py'), run_name='__main__')
    assert 'give --text-encoder FOLDER' in end.value.code
    assert '\n' not in end.value.code


def test_without_a_name_it_opens_with_the_model_of_make_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'no checkpoint is named, and none is in .*: make demo$'):
        DEMO['find_own']()
    for folder in ('digits', 't2i_digits'):
        run = tmp_path / 'work_dirs' / folder
        run.mkdir(parents=True)
        shutil.copy(ROOT / 'tests/data/v0.1/iter_4.pth', run / 'iter_4.pth')
        assert DEMO['find_own']().parent.name == folder


def test_a_missing_gradio_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', 'net.safetensors'])
    with pytest.raises(SystemExit, match=r'error: gradio is not installed; install it: pip install .*\[web\]'):
        runpy.run_path(str(ROOT / 'tools/web_demo.py'), run_name='__main__')


def test_what_gradio_itself_lacks_is_not_taken_for_gradio(tmp_path, monkeypatch):
    (tmp_path / 'gradio.py').write_text('import a_package_of_gradio')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'gradio', raising=False)
    monkeypatch.setattr(sys, 'argv', ['web_demo.py', 'net.safetensors'])
    with pytest.raises(ModuleNotFoundError, match='a_package_of_gradio'):
        runpy.run_path(str(ROOT / 'tools/web_demo.py'), run_name='__main__')


ASKED = dict(size=(8, 12), steps=3, order=2, guidance=2.0, seed=5)


@pytest.mark.parametrize(
    ('asked', 'message'),
    [
        (dict(size=(64, 8)), 'height 64 must be a number from 1 to 32'),
        (dict(size=(8, 10**9)), 'width 1000000000 must be'),
        (dict(size=(None, 8)), 'height None must be'),
        (dict(steps=11), 'steps 11 must be a number from 1 to 10'),
        (dict(steps=2.5), 'steps 2.5 must be a whole number'),
        (dict(order=5), 'order 5 must be'),
        (dict(guidance=float('nan')), 'guidance nan must be'),
        (dict(guidance=1e9), 'guidance 1000000000.0 must be'),
        (dict(seed=2**70), f'seed {2**70} must be a number from 0 to'),
        (dict(seed=-1), 'seed -1 must be'),
        (dict(seed=float('inf')), 'seed inf must be'),
    ],
)
def test_a_visitor_is_held_to_the_limits(pipe, asked, message):
    DEMO['check_request'](pipe, 32, 10, **ASKED)
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        DEMO['check_request'](pipe, 32, 10, **(ASKED | asked))


def test_the_trained_size_is_always_allowed(pipe):
    DEMO['check_request'](pipe, 4, 10, **(ASKED | dict(size=pipe.size)))


def test_zooming_has_limits_too(pipe):
    *_, field = DEMO['draw'](pipe, '1', '', (8, 8), 1, 1, 1.0, 0)
    for factor, grain in ((0.001, 0), (65, 0), (float('nan'), 0), (1, -1), (1, 2)):
        with pytest.raises(ValueError, match='must be from 1 to 64'):
            DEMO['zoom'](field, factor, (0.5, 0.5), grain, 0.5)
    with pytest.raises(ValueError, match='blend=2 must be from 0'):
        DEMO['zoom'](field, 1, (0.5, 0.5), 0, 2)


def test_cancelling_stops_the_visitors_own_drawing_after_its_step(pipe):
    cancellation, seen = DEMO['Cancellation'](), []
    cancellation.stop('one')  # nothing is drawn for them yet
    cancellation.start('one')
    cancellation.start('other')

    def show(done, total):
        cancellation.check('one')
        seen.append(done)
        if done == 2:
            cancellation.stop('one')

    with pytest.raises(DEMO['Cancelled']):
        DEMO['draw'](pipe, '1', '', (8, 8), 5, 1, 1.0, 0, show)
    assert seen == [1, 2]
    cancellation.check('other')
    cancellation.end('one')
    cancellation.check('one')


def test_the_page_serves_pictures_within_limits_and_forgets_them(pipe):
    gradio = pytest.importorskip('gradio', minversion='6')
    client = pytest.importorskip('gradio_client')
    app = DEMO['build_app'](pipe, max_side=32, max_steps=10, keep=30)
    assert app.delete_cache == (60, 30 * 60)
    kept = [block.time_to_live for block in app.blocks.values() if isinstance(block, gradio.State)]
    assert 30 * 60 in kept
    _, url, _ = app.queue(max_size=2, default_concurrency_limit=1).launch(
        prevent_thread_lock=True, quiet=True, share=False, inbrowser=False
    )
    try:
        visitor = client.Client(url, verbose=False)
        result = visitor.predict('1', 8, 12, 3, 2, 2.0, 5, 0, 0.5, api_name='/sample')
        with Image.open(result[0] if isinstance(result[0], str) else result[0]['path']) as picture:
            assert picture.width / picture.height == 12 / 8
        with pytest.raises(Exception, match=r'(?i)64|maximum'):
            visitor.predict('1', 64, 64, 3, 2, 2.0, 5, 0, 0.5, api_name='/sample')
        with pytest.raises(Exception, match=r'(?i)maximum|blend'):
            visitor.predict('1', 8, 12, 3, 2, 2.0, 5, 0, 7, api_name='/sample')
    finally:
        app.close()

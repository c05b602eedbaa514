"""tools/text_benchmark.py on a network that knows nothing: the scorers' layouts, and resuming by picture."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.registry import MODELS
from tests.training import ROOT

CONFIG = ROOT / 'mm_configs/pixnerd_t2i_tiny.py'
OPTIONS = ['model.backbone.dim=16', 'model.backbone.depth=1', 'model.backbone.num_heads=2', 'model.sampler.num_steps=2']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = load_config(CONFIG)
    config.model.backbone.update(dim=16, depth=1, num_heads=2)
    net = MODELS.build(config.model.backbone)
    torch.nn.init.normal_(net.head.proj.weight)
    path = tmp_path_factory.mktemp('net') / 'net.safetensors'
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(dict(architecture=net.architecture()))})
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the config's tiny text encoder is named from here

    def run_tool(*arguments):
        monkeypatch.setattr(sys, 'argv', ['text_benchmark.py', *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools/text_benchmark.py'), run_name='__main__')
        return capsys.readouterr().out

    return run_tool


def test_geneval_is_laid_out_for_its_scorer_and_resumes_by_picture(run, checkpoint, tmp_path):
    lines = [dict(tag='colors', prompt='a photo of a red cat', include=[]), dict(tag='counting', prompt='two dogs')]
    prompts = tmp_path / 'evaluation_metadata.jsonl'
    prompts.write_text('\n'.join(map(json.dumps, lines)))
    arguments = ['geneval', CONFIG, checkpoint, prompts, '--out', tmp_path / 'out', '--cfg-options', *OPTIONS]
    run(*arguments)
    for index, line in enumerate(lines):
        folder = tmp_path / f'out/{index:05d}'
        assert json.loads((folder / 'metadata.jsonl').read_text()) == line
        assert sorted(path.name for path in (folder / 'samples').iterdir()) == [f'{k:04d}.png' for k in range(4)]
    lost, kept = (tmp_path / f'out/0000{index}/samples/0002.png' for index in (1, 0))
    before, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert '7 of 8 pictures are there already' in run(*arguments)
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == time

    # A picture of another choice would be scored with the rest.
    with pytest.raises(SystemExit, match='holds pictures of another run: the list of prompts has changed'):
        run(*arguments, '--limit', 1)
    with pytest.raises(SystemExit, match='holds pictures of another run: seed has changed'):
        run(*arguments, '--seed', 5)
    run(*arguments, '--limit', 1, '--overwrite')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['00000', 'run.json']
    assert '4 of 8 pictures are there already' in run(*arguments)
    with pytest.raises(SystemExit, match='has files that this command did not write'):
        run(*arguments, '--out', tmp_path)


def test_prompts_for_digits_are_drawn_in_their_sizes_and_scored(run, checkpoint, tmp_path):
    for flags, name in (([], 'seen'), (['--unseen'], 'unseen')):
        assert '6 prompts in' in run('digits', tmp_path / f'{name}.jsonl', '--per-task', 1, *flags)
    prompts = [json.loads(line) for line in (tmp_path / 'seen.jsonl').read_text().splitlines()]
    assert len({tuple(prompt['size']) for prompt in prompts}) > 1
    assert (tmp_path / 'seen.jsonl').read_text() != (tmp_path / 'unseen.jsonl').read_text()
    run('geneval', CONFIG, checkpoint, tmp_path / 'seen.jsonl', '--out', tmp_path / 'out', '--cfg-options', *OPTIONS)
    for index, prompt in enumerate(prompts):
        with Image.open(tmp_path / f'out/{index:05d}/samples/0000.png') as image:
            assert list(image.size) == prompt['size'][::-1]
    assert 'of 24 pictures follow their prompt' in run('score', tmp_path / 'out', '--outfile', tmp_path / 'r.jsonl')
    assert '| GenEval (Table 4) |' in run('table', '--geneval', tmp_path / 'r.jsonl')

    (tmp_path / 'wrong.jsonl').write_text(json.dumps(dict(prompts[0], size=[32])))
    with pytest.raises(SystemExit, match=r'line 1: size=.* must be \[height, width\] in pixels'):
        run('geneval', CONFIG, checkpoint, tmp_path / 'wrong.jsonl', '--out', tmp_path / 'o', '--cfg-options', *OPTIONS)
    (tmp_path / 'picture.jsonl').write_bytes(b'\x89PNG\xff')
    with pytest.raises(SystemExit, match='byte 0 is not UTF-8') as end:
        run('geneval', CONFIG, checkpoint, tmp_path / 'picture.jsonl', '--out', tmp_path / 'o')
    assert '\n' not in end.value.code


def test_dpg_grids_are_four_pictures_without_gaps(run, checkpoint, tmp_path):
    folder = tmp_path / 'prompts'
    folder.mkdir()
    for name in ('12', 'partiprompts3'):
        (folder / f'{name}.txt').write_text(f'a drawing of {name}')
    printed = run('dpg', CONFIG, checkpoint, folder, '--work-dir', tmp_path, '--cfg-options', *OPTIONS)
    assert '--resolution 32 --pic-num 4' in printed
    grids = tmp_path / 'dpg/grids'
    assert sorted(path.name for path in grids.iterdir()) == ['12.png', 'partiprompts3.png']
    with Image.open(grids / '12.png') as grid:
        assert grid.size == (64, 64)
        # The scorer's four crops, in its order.
        for k, box in enumerate([(0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64)]):
            with Image.open(tmp_path / f'dpg/pictures/12_{k}.png') as single:
                np.testing.assert_array_equal(np.array(grid.crop(box)), np.array(single))


def test_the_tables_quote_the_paper_beside_the_scores(run, tmp_path):
    tasks = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
    path = tmp_path / 'results.jsonl'
    path.write_text('\n'.join(json.dumps(dict(tag=task, correct=task == 'colors')) for task in tasks))
    printed = run('table', '--geneval', path, '--name', 'mine')
    assert '| mine | 0.00 | 0.00 | 0.00 | 1.00 | 0.00 | 0.00 | 0.17 |' in printed
    assert 'as the paper has it* | 0.97 | 0.86 | 0.44 | 0.83 | 0.71 | 0.53 | 0.73 |' in printed
    with pytest.raises(SystemExit, match='give --geneval JSONL, --dpg TXT, or both'):
        run('table')

import runpy
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'tests/data/qwen3_tiny'


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a tool as a program would be, within this process: starting Python anew takes seconds each time."""

    def run_tool(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
            error = None
        except SystemExit as exit:
            error = exit.code
        output = capfd.readouterr()
        return SimpleNamespace(error=error, output=output.out + output.err)

    return run_tool


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / 'pictures'
    (folder / 'below').mkdir(parents=True)
    for name in ('a', 'b', 'below/c', 'uncaptioned', 'broken'):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f'{name}.png')
    (folder / 'a.txt').write_text('a cat\n\n 一只猫 \n', encoding='utf-8')
    (folder / 'b.txt').write_text('a cat', encoding='utf-8')
    (folder / 'below/c.txt').write_text('a 🐕', encoding='utf-8')
    (folder / 'broken.txt').write_bytes(b'\xff\xfe\xff')
    return folder


def test_captions_are_encoded_once_shared_and_resumed(run, pictures, tmp_path):
    arguments = [pictures, tmp_path / 'out', '--model', FOLDER, '--max-length', 12, '--shard-size', 1]
    for shard in range(2):
        result = run('precompute_text.py', *arguments, '--num-shards', 2, '--shard', shard)
        assert result.error is None
    assert '2 of 5 pictures without a caption' in result.output

    store, encoder = TextEmbeddingStore(tmp_path / 'out'), Qwen3TextEncoder(FOLDER, 12)
    captions = ['a cat', '一只猫', 'a 🐕', '']
    assert len(store) == len(captions)
    for caption in captions:
        assert torch.equal(store[caption], encoder([caption])[0])

    (pictures / 'b.txt').write_text('a dog', encoding='utf-8')
    result = run('precompute_text.py', *arguments)
    assert '5 captions of this process, 1 of them new' in result.output
    assert 'a dog' in TextEmbeddingStore(tmp_path / 'out')

    result = run('precompute_text.py', *arguments[:-3], 13)
    assert result.error.startswith('error: ')
    assert 'choose another OUT' in result.error


def test_captions_of_several_lines_stay_one_and_long_ones_are_counted(run, pictures, tmp_path):
    (pictures / 'b.txt').write_text('a cat\n\n' + 'on a mat ' * 9, encoding='utf-8')
    arguments = [pictures, tmp_path / 'out', '--model', FOLDER, '--max-length', 12, '--one-caption-per-file']
    result = run('precompute_text.py', *arguments)
    assert "; 1 were cut to 12 tokens: 'a cat on a mat" in result.output
    assert 'a cat 一只猫' in TextEmbeddingStore(tmp_path / 'out')


def test_a_file_of_prompts_is_read_line_by_line(run, tmp_path):
    (tmp_path / 'prompts.txt').write_text('a cat\na dog\n', encoding='utf-8')
    arguments = (tmp_path / 'prompts.txt', tmp_path / 'out', '--model', FOLDER, '--max-length', 12)
    assert run('precompute_text.py', *arguments).error is None
    assert len(TextEmbeddingStore(tmp_path / 'out')) == 3


def test_captions_in_tar_shards_are_read_through_their_index(run, pictures, tmp_path):
    (tmp_path / 'shards').mkdir()
    with tarfile.open(tmp_path / 'shards/0.tar', 'w') as tar:
        for path in sorted(pictures.iterdir()):
            if path.is_file():
                tar.add(path, path.name)
    assert run('build_shard_index.py', tmp_path / 'shards', tmp_path / 'index', '--workers', 1).error is None
    arguments = ('--index', tmp_path / 'index', '--model', FOLDER, '--max-length', 12)
    result = run('precompute_text.py', tmp_path / 'shards', tmp_path / 'out', *arguments)
    assert result.error is None
    assert '2 of 4 pictures without a caption' in result.output
    store = TextEmbeddingStore(tmp_path / 'out')
    assert all(caption in store for caption in ('a cat', '一只猫', ''))
    assert len(store) == 3


@pytest.mark.parametrize(('source', 'model'), [('nowhere', FOLDER), (FOLDER, FOLDER), (FOLDER, 'nowhere')])
def test_mistakes_are_told_in_one_line(run, tmp_path, source, model):
    result = run('precompute_text.py', source, tmp_path / 'out', '--model', model)
    assert result.error.startswith('error: ')
    assert '\n' not in result.error
    assert not (tmp_path / 'out').exists()


def test_the_check_reports_and_passes(run):
    result = run('check_text_encoder.py', FOLDER, '--max-length', 12, '--prompt', 'one more')
    assert result.error is None
    assert 'shape (7, 12, 40), torch.bfloat16' in result.output
    assert 'FAIL' not in result.output


def test_the_check_names_a_wrong_folder(run, tmp_path):
    result = run('check_text_encoder.py', tmp_path)
    assert result.error.startswith(f'error: {tmp_path} has no config.json')

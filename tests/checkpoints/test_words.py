"""The words of a tiny text encoder beside its weights, in the one file that ComfyUI's users keep."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pixnerd_plugin.checkpoints.text_encoder import convert_text_encoder
from pixnerd_plugin.checkpoints.words import WORDS_TENSOR, Words, read_words, words_of_folder
from pixnerd_plugin.datasets.digit_scenes import MAX_WORDS, WORDS
from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
from pixnerd_plugin.models.conditioners.tiny_qwen3 import write_tiny_qwen3
from tests.golden import DATA


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny') / 'text_encoder'
    write_tiny_qwen3(folder, WORDS, MAX_WORDS, dim=16, num_heads=2)
    return folder


def test_one_file_reads_prompts_as_the_folder_does(folder, tmp_path):
    convert_text_encoder(folder, tmp_path / 'text.safetensors')
    words = read_words(load_file(tmp_path / 'text.safetensors')[WORDS_TENSOR])
    assert words == words_of_folder(folder)
    encoder = Qwen3TextEncoder(folder, MAX_WORDS)
    for prompt in (
        'a Red three, on black',
        "it's ... an ÄGG_1 (two)",
        '',
        'a b\tc\n,,',
        'three sixes, ones as redsx',
        'a' + 99 * 's',
        'a' + 100 * 's',
    ):
        ids, _ = words.encode(prompt)
        assert ids == encoder.tokenizer(prompt)['input_ids']
    assert words.encode('a red dog, two dogs')[1] == ['dog', 'dogs']


def test_whole_words_of_earlier_versions_are_read(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = json.loads((tmp_path / 'tokenizer.json').read_text())
    vocabulary = {'<pad>': 0, '<unknown>': 1, 'six': 2, 'sixes': 3}
    table['model'] = dict(type='WordLevel', vocab=vocabulary, unk_token='<unknown>')
    (tmp_path / 'tokenizer.json').write_text(json.dumps(table))
    words = words_of_folder(tmp_path)
    assert words is not None
    assert words.encode('six sixes ones') == ([2, 3, 1], ['ones'])


def test_qwens_own_tokenizer_is_left_out(tmp_path):
    assert words_of_folder(DATA / 'qwen3_tiny') is None
    convert_text_encoder(DATA / 'qwen3_tiny', tmp_path / 'text.safetensors')
    assert WORDS_TENSOR not in load_file(tmp_path / 'text.safetensors')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(pre_tokenizer=dict(type='BertPreTokenizer')), 'splits text in another way'),
        (dict(model=dict(type='WordPiece', continuing_subword_prefix='@@', max_input_chars_per_word=100)), 'endings'),
        (dict(model=dict(type='WordPiece')), 'continuing_subword_prefix'),
    ],
)
def test_another_tokenizer_of_the_same_type_is_refused(folder, tmp_path, change, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = json.loads((tmp_path / 'tokenizer.json').read_text())
    (tmp_path / 'tokenizer.json').write_text(json.dumps(table | change))
    with pytest.raises(ValueError, match=rf'not one that PixNerd wrote \(.*{message}'):
        words_of_folder(tmp_path)


GOOD = dict(words=['<pad>', '<unknown>', 'a'], max_length=4, pad=0, unknown=1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(words=['a', 'a']), 'words='),
        (dict(words='abc'), 'words='),
        (dict(max_length=0), 'max_length=0 must be'),
        (dict(unknown=7), 'unknown 7 is none of the words'),
        (dict(pad=None), 'pad=None must be'),
    ],
)
def test_other_bytes_are_refused(change, message):
    assert read_words(Words(**GOOD).to_tensor()) == Words(**GOOD)
    content = torch.tensor(list(json.dumps(GOOD | change).encode()), dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        read_words(content)
    with pytest.raises(ValueError, match='a row of bytes is due'):
        read_words(torch.zeros(2, 2))
    with pytest.raises(ValueError, match='holds no text'):
        read_words(torch.full((4,), 255, dtype=torch.uint8))

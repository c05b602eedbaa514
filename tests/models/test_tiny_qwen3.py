"""The tiny random Qwen3 through the real text encoder: it tells prompts apart, and names what it cannot read."""

import warnings

import pytest
import torch

from pixnerd_plugin.datasets.digit_scenes import MAX_WORDS, WORDS
from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
from pixnerd_plugin.models.conditioners.tiny_qwen3 import write_tiny_qwen3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny') / 'text_encoder'
    write_tiny_qwen3(folder, WORDS, MAX_WORDS, dim=16, num_heads=2)
    return folder


@pytest.fixture
def encoder(folder):
    return Qwen3TextEncoder(folder, MAX_WORDS, 'float32')


def test_the_same_arguments_write_the_same_files(folder, tmp_path):
    write_tiny_qwen3(tmp_path / 'same', WORDS, MAX_WORDS, dim=16, num_heads=2)
    write_tiny_qwen3(tmp_path / 'other', WORDS, MAX_WORDS, dim=16, num_heads=2, seed=1)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / 'same' / path.name).read_bytes()
    assert (folder / 'model.safetensors').read_bytes() != (tmp_path / 'other/model.safetensors').read_bytes()


def test_words_are_tokens_and_case_does_not_matter(encoder):
    ids, mask = encoder.tokenize(['A red three, on Black', ''])
    assert mask.sum(1).tolist() == [6, 0]
    assert ids[0, :6].tolist() == [2 + WORDS.index(word) for word in ('a', 'red', 'three', ',', 'on', 'black')]


def test_a_plural_is_its_singular_and_an_ending(encoder):
    ids, mask = encoder.tokenize(['two sixes', 'three ones'])
    assert mask.sum(1).tolist() == [3, 3]
    two, six, es, three, one, s = (2 + WORDS.index(word) for word in ('two', 'six', '##es', 'three', 'one', '##s'))
    assert ids[:, :3].tolist() == [[two, six, es], [three, one, s]]


def test_order_and_words_change_the_embedding(encoder):
    one, other, swapped = encoder(['a red three', 'a blue three', 'a three red'])
    assert one.shape == (MAX_WORDS, 16)
    for changed in (other, swapped):
        assert (one - changed).norm() > 0.3 * one.norm()
    # Causal: the first word is read alone.
    torch.testing.assert_close(one[0], other[0])


def test_an_unknown_word_is_named_once_with_the_nearest_known(encoder):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        encoder.tokenize(['a purpel three and a dog', 'ed', 'unknown'])
    assert [str(warning.message).partition(' does not know ')[2] for warning in said] == [
        "'purpel'; did you mean 'purple'?",
        "'dog'",
        "'ed'; did you mean 'red'?",
        "'unknown'",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoder.tokenize(['a dog', 'a purple three'])


def test_a_prompt_that_is_cut_is_counted_once(encoder):
    long = ' '.join(['a red three ,'] * 7)
    with pytest.warns(UserWarning, match='has 28 tokens; the text encoder reads only 16'):
        ids, _ = encoder.tokenize([long])
    assert ids.shape == (1, MAX_WORDS)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoder.tokenize([long, ' '.join(['a'] * MAX_WORDS)])

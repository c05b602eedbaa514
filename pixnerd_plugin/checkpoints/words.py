"""The words that a tiny text encoder knows, beside its weights in one file, for hosts that keep text encoders so.

A Qwen3 with Qwen's own tokenizer needs none of this: hosts have that tokenizer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.formats.plain_file import read_json
from pixnerd_plugin.formats.schema import Rule, check_table, integer
from pixnerd_plugin.formats.text_file import parse_table
from pixnerd_plugin.models.conditioners.tiny_qwen3 import ENDING, LONGEST_WORD

WORDS_TENSOR = 'pixnerd_words'
"""A row of bytes: a JSON object with ``words`` in the order of their ids, ``max_length``, ``pad`` and ``unknown``."""

_MAX_BYTES = 2**20
# Whole words alone, as earlier versions wrote them, have no endings.
_KINDS = ('WordPiece', 'WordLevel')
_RULES = dict(
    words=Rule(
        'a list of at most 65536 different words',
        lambda value: (
            type(value) is list
            and 2 <= len(value) <= 2**16
            and all(type(word) is str for word in value)
            and len(set(value)) == len(value)
        ),
    ),
    max_length=integer(1, 2**12),
    pad=integer(0, 2**16 - 1),
    unknown=integer(0, 2**16 - 1),
)


class Words(NamedTuple):
    """A tokenizer of words and of endings, which start with ``##``; all in lower case."""

    words: list[str]
    max_length: int
    pad: int
    unknown: int

    def encode(self, prompt: str) -> tuple[list[int], list[str]]:
        """The ids of a prompt, neither cut nor padded, and the words in it that are not known.

        As transformers does it for letters, digits and punctuation; rare signs, of which none is known, may be split
        otherwise.
        """
        numbers = {word: index for index, word in enumerate(self.words)}
        ids, unknown = [], []
        for word in re.findall(r'\w+|[^\w\s]+', prompt.lower()):
            pieces = _pieces(word, numbers) if len(word) <= LONGEST_WORD else None
            ids += pieces or [self.unknown]
            unknown += [] if pieces else [word]
        return ids, unknown

    def to_tensor(self) -> Tensor:
        return torch.tensor(list(json.dumps(self._asdict()).encode()), dtype=torch.uint8)


def _pieces(word: str, numbers: dict[str, int]) -> list[int] | None:
    """The ids of the longest known beginning of a word, then of the longest known endings; None if that fails."""
    ids, start = [], 0
    while start < len(word):
        prefix = ENDING if start else ''
        end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in numbers), None)
        if end is None:
            return None
        ids.append(numbers[prefix + word[start:end]])
        start = end
    return ids


def words_of_folder(folder: Path) -> Words | None:
    """The words of a text encoder in transformers layout; None if its tokenizer is not one of words.

    Raises:
        ValueError: if it is one, but not as ``write_tiny_qwen3`` writes it.
    """
    file = folder / 'tokenizer.json'
    table: Any = read_json(file) if file.is_file() else None
    model = table.get('model') if type(table) is dict else None
    if type(model) is not dict or model.get('type') not in _KINDS:
        return None
    settings: Any = read_json(folder / 'tokenizer_config.json')
    try:
        if (table['normalizer'], table['pre_tokenizer']) != (dict(type='Lowercase'), dict(type='Whitespace')):
            raise ValueError('it splits text in another way')
        if model['type'] == 'WordPiece' and (model['continuing_subword_prefix'], model['max_input_chars_per_word']) != (
            ENDING,
            LONGEST_WORD,
        ):
            raise ValueError('it has other endings')
        vocabulary = sorted(model['vocab'], key=model['vocab'].__getitem__)
        return _checked(
            dict(
                words=vocabulary,
                max_length=settings['model_max_length'],
                pad=vocabulary.index(settings['pad_token']),
                unknown=vocabulary.index(settings['unk_token']),
            )
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f'{folder}: its tokenizer of words is not one that PixNerd wrote ({error})') from None


def read_words(tensor: Tensor) -> Words:
    """The words in the bytes of :data:`WORDS_TENSOR`.

    Raises:
        ValueError: if it holds something else.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) > _MAX_BYTES:
        raise ValueError(f'{WORDS_TENSOR} is {tuple(tensor.shape)} of {tensor.dtype}, and a row of bytes is due')
    try:
        text = bytes(tensor.tolist()).decode()
    except UnicodeDecodeError:
        raise ValueError(f'{WORDS_TENSOR} holds no text') from None
    return _checked(parse_table(WORDS_TENSOR, text, _RULES, _RULES, _MAX_BYTES))


def _checked(table: dict[str, Any]) -> Words:
    check_table(WORDS_TENSOR, table, _RULES)
    words = Words(**table)
    if max(words.pad, words.unknown) >= len(words.words):
        raise ValueError(f'{WORDS_TENSOR}: pad {words.pad} or unknown {words.unknown} is none of the words')
    return words

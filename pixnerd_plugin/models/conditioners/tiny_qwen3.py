"""A tiny Qwen3 with fixed random weights and a tokenizer of words, as a folder in transformers layout.

A random text encoder that is kept frozen tells words and their order apart, and that is what a small text-to-image
network needs of it: which words mean what, the network learns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pixnerd_plugin.formats.atomic import atomic_path

PAD, UNKNOWN = '<pad>', '<unknown>'

ENDING = '##'
"""Begins what only ends words."""

LONGEST_WORD = 100
"""Longer ones are not known, whatever they are made of."""


def write_tiny_qwen3(
    folder: str | Path,
    words: Sequence[str],
    max_length: int,
    dim: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    seed: int = 0,
) -> None:
    """Write config, weights and tokenizer to ``folder``; the same arguments always give the same files.

    Args:
        folder: made if it does not exist.
        words: all that the tokenizer knows, in lower case; punctuation marks are words too, and endings start with
            ``##``: with ``'##s'`` the plural of a known word is two tokens.
        max_length: words and endings in a prompt at most.
        dim: width of the embeddings; a multiple of ``num_heads``.
        depth: number of layers.
        num_heads: attention heads, each with its own keys and values.
        seed: another seed, another encoder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate((PAD, UNKNOWN, *words))}
    config = dict(
        architectures=['Qwen3Model'],
        model_type='qwen3',
        vocab_size=len(vocabulary),
        hidden_size=dim,
        intermediate_size=3 * dim,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=dim // num_heads,
        max_position_embeddings=max_length,
        rms_norm_eps=1e-6,
        # Of transformers 4 and 5; ComfyUI's is fixed to this one.
        rope_theta=1e6,
        rope_parameters=dict(rope_theta=1e6, rope_type='default'),
        attention_bias=False,
        tie_word_embeddings=False,
        dtype='bfloat16',
    )
    tokenizer = dict(
        tokenizer_class='PreTrainedTokenizerFast', pad_token=PAD, unk_token=UNKNOWN, model_max_length=max_length
    )
    _write_json(folder / 'config.json', config)
    _write_json(folder / 'tokenizer_config.json', tokenizer)
    _write_json(folder / 'tokenizer.json', _word_tokenizer(vocabulary))
    with atomic_path(folder / 'model.safetensors') as temporary:
        temporary.write_bytes(save(_weights(config, seed), {'format': 'pt'}))


def _weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Normal weights that keep the size of what they are applied to; each tensor from a stream of its own."""
    dim, hidden = config['hidden_size'], config['intermediate_size']
    shapes: dict[str, tuple[int, ...]] = {'embed_tokens.weight': (config['vocab_size'], dim), 'norm.weight': (dim,)}
    for index in range(config['num_hidden_layers']):
        layer = f'layers.{index}'
        shapes |= {f'{layer}.self_attn.{name}_proj.weight': (dim, dim) for name in 'qkvo'}
        shapes |= {f'{layer}.self_attn.{name}_norm.weight': (config['head_dim'],) for name in 'qk'}
        shapes |= {f'{layer}.{name}_layernorm.weight': (dim,) for name in ('input', 'post_attention')}
        shapes |= {f'{layer}.mlp.{name}_proj.weight': (hidden, dim) for name in ('gate', 'up')}
        shapes[f'{layer}.mlp.down_proj.weight'] = (dim, hidden)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        own_seed = int.from_bytes(hashlib.sha256(f'{seed} {name}'.encode()).digest()[:7], 'big')
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(own_seed))
        scale = 1 if name.startswith('embed') else shape[1] ** -0.5
        weights[name] = (noise * scale).to(torch.bfloat16)
    return weights


def _word_tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    """The tokenizer.json of a tokenizer that makes everything lower case and knows words and endings alone."""
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return dict(
        version='1.0',
        truncation=None,
        padding=None,
        added_tokens=[dict(id=vocabulary[token], content=token, **special) for token in (PAD, UNKNOWN)],
        normalizer=dict(type='Lowercase'),
        pre_tokenizer=dict(type='Whitespace'),
        post_processor=None,
        decoder=None,
        model=dict(
            type='WordPiece',
            vocab=vocabulary,
            unk_token=UNKNOWN,
            continuing_subword_prefix=ENDING,
            max_input_chars_per_word=LONGEST_WORD,
        ),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')

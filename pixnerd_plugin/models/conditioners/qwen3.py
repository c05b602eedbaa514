"""Prompts as the condition of text-to-image models: the last hidden state of a frozen Qwen3."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.formats.schema import shown
from pixnerd_plugin.models.frozen import FrozenModel, find_pretrained, load_pretrained, loading, resolve_dtype
from pixnerd_plugin.registry import MODELS

from .base import Conditioner
from .embedding_store import TextEmbeddingStore
from .tiny_qwen3 import ENDING

EXAMPLE = 'Qwen/Qwen3-1.7B'

# Captions in their millions must not fill a log.
_MAX_NAMED = 20


@MODELS.register_module()
class Qwen3TextEncoder(Conditioner):
    """Prompts to the last hidden state of Qwen3 after its final norm, shape (B, max_length, dim).

    The prompt is encoded as it is, without chat template, padded on the right or truncated to ``max_length`` tokens.
    The folder is checked when the object is made; the weights are read at the first prompt.

    Args:
        model: folder of a Qwen3 model in transformers layout with safetensors weights, or its hub id if it is in the
            local cache. Nothing is downloaded.
        max_length: tokens per prompt, including padding.
        dtype: ``'bfloat16'`` or ``'float32'``, of the computation and the result. The weights are rounded to bfloat16
            either way, see ``_load_qwen3``.
        precomputed: folder that ``tools/precompute_text.py`` wrote. Prompts in it, including the empty one, are not
            encoded again, so training on precomputed embeddings never reads the encoder's weights.

    Attributes:
        num_cut: number of prompts so far that were longer than ``max_length`` and lost their end.
        first_cut: the beginning of the first of them.

    Raises:
        FileNotFoundError: if ``model`` or ``precomputed`` is missing or incomplete.
        ValueError: if ``model`` is not a Qwen3, or ``precomputed`` was made by another model or length.
    """

    def __init__(
        self,
        model: str | Path,
        max_length: int = 128,
        dtype: str = 'bfloat16',
        precomputed: str | Path | None = None,
    ):
        if max_length < 1:
            raise ValueError(f'max_length={max_length} must be at least 1')
        self.max_length = max_length
        self.dtype = resolve_dtype(dtype)
        self.folder = find_pretrained(model, ('qwen3',), EXAMPLE)
        self.tokenizer = _load_tokenizer(self.folder)
        self.encoder = FrozenModel(partial(_load_qwen3, self.folder, self.dtype))
        self._store = None if precomputed is None else _open_store(precomputed, self.folder, max_length)
        self._empty: Tensor | None = None
        self.num_cut, self.first_cut = 0, ''
        self._named: set[str] = set()

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.encoder.module.config.hidden_size

    def to(self, device: torch.device | str) -> Qwen3TextEncoder:
        super().to(device)
        self.encoder.to(device)
        return self

    def __call__(self, inputs: Sequence[str]) -> Tensor:
        """Encode prompts, shape (B, max_length, dim), in ``dtype``."""
        if self._store is not None and inputs and all(prompt in self._store for prompt in inputs):
            return torch.stack([self._store[prompt] for prompt in inputs]).to(self.device, self.dtype)
        ids, mask = self.tokenize(inputs)
        # Empty prompts are not encoded with the batch, so that they are always identical to `null`.
        filled = mask.any(dim=1)
        embeds = self.null(len(ids)).clone()
        if filled.any():
            embeds[filled.to(self.device)] = self._encode(ids[filled], mask[filled])
        return embeds

    def null(self, batch_size: int) -> Tensor:
        """The empty prompt, shape (B, max_length, dim), encoded once and cached."""
        if self._empty is None and self._store is not None:
            self._empty = self._store[''][None].to(self.dtype)
        if self._empty is None:
            ids, mask = self.tokenize([''])
            # All padding. Versions of transformers treat a mask of zeros differently; the published weights were
            # trained with the padding attending to itself.
            self._empty = self._encode(ids, torch.ones_like(mask))
        self._empty = self._empty.to(self.device)
        return self._empty.expand(batch_size, -1, -1)

    def from_batch(self, data_samples: Mapping[str, Any]) -> Tensor:
        """Return ``text_embeds`` (B, max_length, dim) if the batch has them, else encode its ``text``."""
        if 'text_embeds' in data_samples:
            embeds = data_samples['text_embeds']
            expected = tuple(self.null(1).shape[1:])
            if embeds.shape[1:] != expected:
                raise ValueError(
                    f'text_embeds are {tuple(embeds.shape)} in the batch, not (B, {expected[0]}, {expected[1]})'
                )
            return embeds.to(self.device, self.dtype, non_blocking=True)
        if 'text' not in data_samples:
            raise ValueError(f'the batch has neither text nor text_embeds, only {sorted(data_samples)}')
        return self(data_samples['text'])

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert prompts to token ids and attention mask, both (B, max_length), long, on the CPU.

        Words that the tokenizer does not know and prompts that are cut are named in a warning, each once.
        """
        if isinstance(prompts, str):
            raise ValueError(f'prompts must be a list of strings, got the string {prompts!r}')
        for prompt in prompts:
            _check_prompt(prompt)
        tokens = self.tokenizer(
            list(prompts), padding='max_length', truncation=True, max_length=self.max_length, return_tensors='pt'
        )
        ids, mask = tokens['input_ids'], tokens['attention_mask']
        self._name_unknown([prompt for prompt, row in zip(prompts, ids, strict=True) if self._has_unknown(row)])
        self._count_cut([prompt for prompt, is_full in zip(prompts, mask.all(dim=1).tolist(), strict=True) if is_full])
        return ids, mask

    def _has_unknown(self, ids: Tensor) -> bool:
        unknown = self.tokenizer.unk_token_id
        # Qwen's tokenizer knows every byte, and some versions call the padding its unknown token.
        return unknown not in (None, self.tokenizer.pad_token_id) and bool((ids == unknown).any())

    def _name_unknown(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            tokens = self.tokenizer(prompt, return_offsets_mapping=True)
            for token, (start, end) in zip(tokens['input_ids'], tokens['offset_mapping'], strict=True):
                word = prompt[start:end]
                if token == self.tokenizer.unk_token_id and self._is_new(word):
                    near = get_close_matches(word.lower(), self._known_words(), 1)
                    hint = f'; did you mean {near[0]!r}?' if near else ''
                    warnings.warn(f'the text encoder {self.folder} does not know {word!r}{hint}', stacklevel=4)

    def _known_words(self) -> list[str]:
        special = self.tokenizer.all_special_tokens
        return sorted(word for word in self.tokenizer.get_vocab() if word not in special and word[:2] != ENDING)

    def _count_cut(self, full: Sequence[str]) -> None:
        """Count and name the prompts that lose their end, among those that fill all tokens."""
        for prompt in full:
            count = len(self.tokenizer(prompt)['input_ids'])
            if count <= self.max_length:
                continue
            self.num_cut += 1
            self.first_cut = self.first_cut or prompt[:60]
            if self._is_new(prompt):
                warnings.warn(
                    f'the prompt {shown(prompt)} has {count} tokens; the text encoder reads only {self.max_length}',
                    stacklevel=4,
                )

    def _is_new(self, text: str) -> bool:
        """Whether to name ``text``: once, and no more than 20 of them."""
        if text in self._named or len(self._named) == _MAX_NAMED:
            return False
        self._named.add(text)
        return True

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self.encoder(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
        return output.last_hidden_state.to(self.dtype)


def _open_store(precomputed: str | Path, folder: Path, max_length: int) -> Any:
    store = TextEmbeddingStore(precomputed)
    if '' not in store:
        raise FileNotFoundError(f'no text embeddings in {precomputed}: write them with tools/precompute_text.py')
    wanted = dict(model=folder.resolve().name, max_length=str(max_length))
    found = {name: (store.settings or {}).get(name) for name in wanted}
    if found != wanted:
        raise ValueError(f'{precomputed} holds embeddings made with {found}, not {wanted}: compute them again')
    return store


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str):
        raise ValueError(f'a prompt must be a string, got {prompt!r}')
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'prompt {prompt!r} is not valid Unicode: {error.reason}') from None


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / 'tokenizer.json').is_file():
        absent = [name for name in ('vocab.json', 'merges.txt') if not (folder / name).is_file()]
        if absent:
            raise FileNotFoundError(f'{folder} has no tokenizer: neither tokenizer.json nor {" and ".join(absent)}')
    with loading(f'the tokenizer in {folder} does not load'):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token_id is None:
        raise ValueError(f'the tokenizer in {folder} has no padding token: use that of {EXAMPLE}')
    tokenizer.padding_side = tokenizer.truncation_side = 'right'
    return tokenizer


def _load_qwen3(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    with loading(f'the config.json in {folder} does not load'):
        config: Any = Qwen3Config.from_pretrained(folder, local_files_only=True)
    # transformers 5 saves the rotary base where transformers 4 does not look; it would use 10000 instead.
    if hasattr(config, 'rope_theta') and getattr(config, 'rope_parameters', None):
        config.rope_theta = config.rope_parameters['rope_theta']
    model = load_pretrained(Qwen3Model, folder, config=config, dtype=torch.bfloat16)
    # The release casts the whole module, which also rounds the rotary inverse frequencies, and PixNerd was trained with
    # that. So everything is rounded to bfloat16 first, even for a computation in float32.
    return model.to(torch.bfloat16).to(dtype)

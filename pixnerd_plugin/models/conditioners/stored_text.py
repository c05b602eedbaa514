"""Text embeddings computed ahead of training, in place of the text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...registry import MODELS
from .base import Conditioner


@MODELS.register_module()
class StoredTextEmbeddings(Conditioner):
    """Prompts to the embeddings (B, max_length, dim) that ``tools/precompute_text.py`` wrote; no encoder is loaded.

    Args:
        folder: the store; it holds the empty prompt and every prompt that will be asked for.

    Raises:
        FileNotFoundError: if there is no embedding of the empty prompt in ``folder``.
    """

    def __init__(self, folder: str):
        # Only here, because training needs mmcv and sampling does not.
        from pixnerd_plugin.datasets.text_embeddings import TextEmbeddingStore

        self.store = TextEmbeddingStore(folder)
        if '' not in self.store:
            raise FileNotFoundError(f'no text embeddings in {folder}: write them with tools/precompute_text.py')
        self._empty = self.store['']

    def __call__(self, inputs: Sequence[str]) -> Tensor:
        """Prompts to embeddings; ValueError if one is not stored."""
        try:
            return torch.stack([self.store[prompt] for prompt in inputs]).to(self.device)
        except LookupError as error:
            raise ValueError(str(error)) from None

    def null(self, batch_size: int) -> Tensor:
        self._empty = self._empty.to(self.device)
        return self._empty.expand(batch_size, -1, -1)

    def from_batch(self, data_samples: Mapping[str, Any]) -> Tensor:
        """``text_embeds`` (B, max_length, dim) if the batch has them, else its ``text`` looked up."""
        if 'text_embeds' in data_samples:
            return data_samples['text_embeds'].to(self.device, non_blocking=True)
        if 'text' not in data_samples:
            raise ValueError(f'the batch has no text or text_embeds, only {sorted(data_samples)}')
        return self(data_samples['text'])

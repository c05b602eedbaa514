"""Text embeddings computed ahead of training: a folder of safetensors shards, looked up by the caption itself.

A shard holds ``embeds`` (n, max_length, dim) and ``keys`` (n, 16), the digests of the n captions. Looking up by
caption makes the store independent of how pictures are kept (folders, tar shards), and of how many captions each has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pixnerd_plugin.formats.atomic import atomic_path

KEY_BYTES = 16


def caption_key(caption: str) -> bytes:
    """The digest a caption is stored under; space around the caption does not matter."""
    return hashlib.blake2b(caption.strip().encode(), digest_size=KEY_BYTES).digest()


class TextEmbeddingStore:
    """The captions of a folder of shards, as far as they have been computed.

    Memory is 24 bytes a caption; the embeddings stay on disk.

    Args:
        folder: Where the shards are. It may be empty, for a store that is to be written.

    Raises:
        ValueError: A damaged shard, or shards made with different settings.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        self.shards = sorted(self.folder.glob('[!.]*.safetensors'))
        self.settings: dict[str, str] | None = None
        keys = [self._read_keys(shard) for shard in self.shards]
        self._keys = np.concatenate([*keys, np.empty(0, f'S{KEY_BYTES}')])
        self._starts = np.cumsum([0, *map(len, keys)])
        self._order = np.argsort(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __getitem__(self, caption: str) -> Tensor:
        """The embedding of ``caption``, shape (max_length, dim)."""
        index = self._find(caption)
        if index is None:
            raise ValueError(f'{self.folder} has no embedding of {caption!r}: run tools/precompute_text.py again')
        shard = int(np.searchsorted(self._starts, index, side='right')) - 1
        row = index - int(self._starts[shard])
        with safe_open(self.shards[shard], 'pt') as file:
            return file.get_slice('embeds')[row : row + 1][0]

    def write(self, name: str, captions: Sequence[str], embeds: Tensor, settings: dict[str, str]) -> None:
        """Write one shard, whole or not at all. It is seen by the stores opened afterwards.

        Args:
            name: File name, without its ending.
            captions: The n captions.
            embeds: Their embeddings, shape (n, max_length, dim).
            settings: What the embeddings were made with; the same in all shards of a folder.
        """
        keys = np.frombuffer(b''.join(map(caption_key, captions)), np.uint8).reshape(-1, KEY_BYTES)
        with atomic_path(self.folder / f'{name}.safetensors') as temporary:
            temporary.write_bytes(
                save({'embeds': embeds.contiguous(), 'keys': torch.from_numpy(keys.copy())}, settings)
            )

    def _find(self, caption: str) -> int | None:
        key = np.array(caption_key(caption), self._keys.dtype)
        position = int(np.searchsorted(self._keys, key, sorter=self._order))
        if position == len(self) or self._keys[self._order[position]] != key:
            return None
        return int(self._order[position])

    def _read_keys(self, shard: Path) -> np.ndarray:
        try:
            with safe_open(shard, 'np') as file:
                settings, keys = file.metadata(), file.get_tensor('keys')
        except SafetensorError as error:
            raise ValueError(f'{shard} is no shard of text embeddings ({error}): delete it and run again') from None
        if self.settings not in (None, settings):
            raise ValueError(f'{shard} was made with {settings}, the shards before it with {self.settings}')
        self.settings = settings
        return keys.view(f'S{KEY_BYTES}').reshape(-1)

"""Text embeddings computed ahead of training: a folder of safetensors shards, looked up by caption.

A shard holds ``embeds`` (n, max_length, dim) and ``keys`` (n, 16), the digests of the n captions. Because captions are
the keys, the store does not depend on how pictures are kept (folders, tar shards) or how many captions each has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.formats.lazy import Span, Tensors
from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.safetensors_file import open_safetensors
from pixnerd_plugin.formats.schema import check_table, integer, naming, shown, text

KEY_BYTES = 16

# Limits for an untrusted shard: 64 MiB of keys, 128 MiB an embedding. Those of the published model take 512 KiB.
MAX_CAPTIONS, MAX_LENGTH, MAX_WIDTH = 2**22, 2**12, 2**13

_SETTINGS = dict(format=text(100), model=text(1000), max_length=text(10), dtype=text(20))
_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


class _Rows(NamedTuple):
    """The embeddings of a shard, in their file."""

    span: Span
    dtype: torch.dtype
    shape: tuple[int, int, int]

    def read(self, row: int) -> Tensor:
        size = self.span.size // self.shape[0]
        return Span(self.span.path, self.span.offset + row * size, size).read(self.dtype, self.shape[1:])


def caption_key(caption: str) -> bytes:
    """The digest under which a caption is stored; leading and trailing spaces do not matter."""
    return hashlib.blake2b(caption.strip().encode(), digest_size=KEY_BYTES).digest()


class TextEmbeddingStore:
    """The text embeddings in a folder of shards.

    It takes 24 bytes of memory a caption; the embeddings stay on disk.

    Args:
        folder: folder of the shards. It may be empty, for a store to be written.

    Raises:
        ValueError: if a shard is damaged, or shards were made with different settings.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        self.shards = sorted(self.folder.glob('[!.]*.safetensors'))
        self.settings: dict[str, str] | None = None
        self._rows: list[_Rows] = []
        keys = [self._open(shard) for shard in self.shards]
        self._keys = np.concatenate([*keys, np.empty(0, f'S{KEY_BYTES}')])
        self._starts = np.cumsum([0, *map(len, keys)])
        self._order = np.argsort(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __getitem__(self, caption: str) -> Tensor:
        """The embedding of ``caption``, shape (max_length, dim).

        Raises:
            ValueError: if the store has none, it is not finite, or its shard has been cut short.
        """
        index = self._find(caption)
        if index is None:
            raise ValueError(f'{self.folder} has no embedding of {shown(caption)}: run tools/precompute_text.py again')
        shard = int(np.searchsorted(self._starts, index, side='right')) - 1
        row = index - int(self._starts[shard])
        embedding = self._rows[shard].read(row)
        if not embedding.isfinite().all():
            raise ValueError(f'{self.shards[shard]}: the embedding of {shown(caption)} holds NaN or infinite values')
        return embedding

    def write(self, name: str, captions: Sequence[str], embeds: Tensor, settings: dict[str, str]) -> None:
        """Write one shard atomically. Stores opened afterwards have it; this one does not.

        Args:
            name: file name without suffix.
            captions: the n captions.
            embeds: their embeddings, shape (n, max_length, dim).
            settings: how the embeddings were made; the same in all shards of a folder.
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

    def _open(self, shard: Path) -> np.ndarray:
        """Check a shard, and return the digests in it."""
        with naming(f'{shard} is not a shard of text embeddings; delete it and run tools/precompute_text.py again'):
            require_file(shard, 'shard')
            tensors, settings = open_safetensors(shard)
            rows = _check(tensors, settings)
        if self.settings not in (None, settings):
            made, before = str(settings)[:200], str(self.settings)[:200]
            raise ValueError(f'{shard} was made with {made}, the shards before it with {before}')
        if self._rows and (rows.dtype, rows.shape[1:]) != (self._rows[0].dtype, self._rows[0].shape[1:]):
            raise ValueError(
                f'{shard} has embeddings {rows.shape[1:]} of {rows.dtype}, the shards before it '
                f'{self._rows[0].shape[1:]} of {self._rows[0].dtype}'
            )
        self.settings = settings
        self._rows.append(rows)
        return tensors['keys'].read().numpy().view(f'S{KEY_BYTES}').reshape(-1)


def _check(tensors: Tensors, settings: dict[str, str]) -> _Rows:
    check_table('its metadata', settings, _SETTINGS)
    if sorted(tensors) != ['embeds', 'keys']:
        raise ValueError(f'it has {len(tensors)} tensors, and not embeds and keys alone')
    keys, embeds = tensors['keys'], tensors['embeds']
    integer(1, MAX_CAPTIONS).check('its number of captions', keys.shape[0] if keys.shape else 0)
    if keys.dtype != torch.uint8 or keys.shape[1:] != (KEY_BYTES,):
        raise ValueError(f'its keys are {keys.shape} of {keys.dtype}, not (n, {KEY_BYTES}) of torch.uint8')
    if embeds.dtype not in _DTYPES.values() or len(embeds.shape) != 3 or embeds.shape[0] != keys.shape[0]:
        raise ValueError(
            f'its embeds are {embeds.shape} of {embeds.dtype}, not ({keys.shape[0]}, max_length, dim) of floats'
        )
    integer(1, MAX_LENGTH).check('its max_length', embeds.shape[1])
    integer(1, MAX_WIDTH).check('its width', embeds.shape[2])
    if settings.get('max_length', str(embeds.shape[1])) != str(embeds.shape[1]):
        raise ValueError(
            f'its embeds have {embeds.shape[1]} tokens, and its metadata says {shown(settings["max_length"])}'
        )
    if _DTYPES.get(settings.get('dtype', ''), embeds.dtype) != embeds.dtype:
        raise ValueError(f'its embeds are of {embeds.dtype}, and its metadata says {shown(settings["dtype"])}')
    assert embeds.span is not None
    return _Rows(embeds.span, embeds.dtype, (embeds.shape[0], embeds.shape[1], embeds.shape[2]))

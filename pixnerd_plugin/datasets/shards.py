"""Tar shards in webdataset layout, read map-style through a memory-mapped index.

The index is one file: a record of 32 bytes for each pair (`PAIR`), then a JSON footer that describes the shards, then
the footer's length and a magic number. Records are read through the page cache, which all ranks and workers share, so
the number of pairs costs neither memory per process nor time at the start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.registry import DATASETS

from .base import digest
from .captions import CAPTION_SUFFIXES, CaptionedDataset
from .faults import DamagedPicture
from .image_folder import checked_folder

# Offsets and sizes are in bytes. caption_kind: 0 none, 1 .txt, 2 .json.
PAIR = np.dtype(
    [
        ('shard', '<u4'),
        ('image_size', '<u4'),
        ('caption_size', '<u4'),
        ('caption_kind', '<u4'),
        ('image_offset', '<u8'),
        ('caption_offset', '<u8'),
    ]
)
_MAGIC = b'PNSHARD1'
_TAIL = len(_MAGIC) + 8


class Shard(NamedTuple):
    """A shard of the index: path relative to the shards' folder, bytes of the file, pairs in it."""

    name: str
    size: int
    num_pairs: int


def write_shard_index(path: str, shards: Iterable[tuple[Shard, np.ndarray]]) -> None:
    """Write an index atomically, from each shard and its pairs (their `shard` field is filled in here)."""
    written, sha = [], hashlib.sha256()
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        for number, (shard, pairs) in enumerate(shards):
            pairs['shard'] = number
            file.write(pairs.tobytes())
            sha.update(pairs.tobytes())
            written.append(shard)
        footer = json.dumps(dict(shards=written, records_sha256=sha.hexdigest())).encode()
        file.write(footer + len(footer).to_bytes(8, 'little') + _MAGIC)


class ShardIndex:
    """An index file, mapped: `pairs` (N,) of dtype `PAIR`, `shards`, and its `fingerprint`. Pickled as its path."""

    def __init__(self, path: str):
        self.path = path
        rebuild = 'build it with tools/build_shard_index.py'
        if not os.path.isfile(path):
            raise FileNotFoundError(f'there is no shard index {path!r}; {rebuild}')
        with open(path, 'rb') as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL))
            tail = file.read()
            footer_start = end - _TAIL - int.from_bytes(tail[:8], 'little')
            if len(tail) != _TAIL or tail[8:] != _MAGIC or footer_start < 0:
                raise ValueError(f'{path!r} is not a shard index, or is cut short; {rebuild} again')
            file.seek(footer_start)
            encoded = file.read(end - _TAIL - footer_start)
        try:
            self.shards = [Shard(*fields) for fields in json.loads(encoded)['shards']]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path!r} is a damaged shard index; {rebuild} again') from None
        num_pairs = sum(shard.num_pairs for shard in self.shards)
        if num_pairs == 0 or num_pairs * PAIR.itemsize != footer_start:
            raise ValueError(
                f'{path!r} should hold {num_pairs} pairs, at least 1, but its length differs; {rebuild} again'
            )
        self.fingerprint = digest([encoded.decode()])
        # A plain array over the map: indexing np.memmap itself is ten times slower.
        self.pairs = np.asarray(np.memmap(path, PAIR, 'r', shape=(num_pairs,)))

    def __reduce__(self) -> tuple[type[ShardIndex], tuple[str]]:
        return ShardIndex, (self.path,)


class ShardReader:
    """Read byte ranges of shards, keeping the `max_open` last used ones open.

    Safe to share across a fork: `os.pread` moves no file offset. Pickled without its open files.
    """

    def __init__(self, paths: list[str], max_open: int = 32):
        self.paths = paths
        self.max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`; raise OSError if the shard cannot be read or ends before."""
        if shard not in self._open:
            if len(self._open) == self.max_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY)
        self._open.move_to_end(shard)
        encoded = os.pread(self._open[shard], size, offset)
        if len(encoded) != size:
            raise OSError(f'{self.paths[shard]} ends within a member')
        return encoded

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[list[str], int]]:
        return ShardReader, (self.paths, self.max_open)


@DATASETS.register_module()
class ShardDataset(CaptionedDataset):
    """Pictures and captions in tar shards (webdataset layout), at random through an index.

    Samples are ``dict(img_bytes, img_path, captions, text)``, img_path being the shard and the picture's offset in it.
    `shard_sizes` lets ``ResumableSampler(shards_per_block=...)`` shuffle shards and then within blocks.

    Args:
        data_root: the folder of the shards.
        index: the file that ``tools/build_shard_index.py`` made of them.
        kwargs: `CaptionedDataset`'s arguments, `pipeline`, `max_damaged` and `caption_key` among them.
    """

    def __init__(self, data_root: str, index: str, **kwargs: Any):
        self.index = ShardIndex(os.path.expanduser(index))
        root = checked_folder(data_root, f'the tar shards of {self.index.path!r}')
        paths = [os.path.join(root, shard.name) for shard in self.index.shards]
        for shard, path in zip(self.index.shards, paths, strict=True):
            size = os.path.getsize(path) if os.path.isfile(path) else None
            if size != shard.size:
                state = 'is missing' if size is None else f'has {size} bytes, not {shard.size}'
                raise ValueError(
                    f'shard {path!r} {state}; {self.index.path!r} was built from other shards, build it again'
                )
        self.shard_sizes = np.array([shard.num_pairs for shard in self.index.shards])
        self.fingerprint = self.index.fingerprint
        self._reader = ShardReader(paths)
        super().__init__(data_root=root, **kwargs, serialize_data=False)

    def load_data_list(self) -> list[dict[str, Any]]:
        return []

    def __len__(self) -> int:
        return len(self.index.pairs)

    def _get_unserialized_subset(self, indices: Any) -> list[dict[str, Any]]:
        raise NotImplementedError('a ShardDataset has no subsets: build an index of fewer shards')

    def describe(self, index: int) -> str:
        pair = self.index.pairs[index]
        return f'{self._reader.paths[pair["shard"]]}@{pair["image_offset"]}'

    def captions(self, index: int) -> list[str]:
        """The captions of a pair, without reading its picture; as in a sample, one empty one if there is none."""
        return self._with_captions(index, {})['captions']

    def get_data_info(self, idx: int) -> dict[str, Any]:
        pair = self.index.pairs[idx]
        try:
            encoded = self._reader.read(int(pair['shard']), int(pair['image_offset']), int(pair['image_size']))
        except OSError as error:
            raise DamagedPicture(str(error)) from error
        return self._with_captions(idx, dict(img_bytes=encoded))

    def _with_captions(self, index: int, info: dict[str, Any]) -> dict[str, Any]:
        pair = self.index.pairs[index]

        def read() -> tuple[bytes, str]:
            if pair['caption_kind'] == 0:
                raise ValueError('no readable .txt or .json in its shard')
            encoded = self._reader.read(int(pair['shard']), int(pair['caption_offset']), int(pair['caption_size']))
            return encoded, CAPTION_SUFFIXES[pair['caption_kind'] - 1]

        return self.with_captions(dict(info, sample_idx=index, img_path=self.describe(index)), read)

"""Tar shards in webdataset layout, read map-style through an index.

The index is one file: a record of 32 bytes for each pair (`PAIR`), perhaps the pictures' shapes, 4 bytes each
(`SHAPE`), a JSON footer that describes the shards, the footer's length, and a magic number. Records are read on demand
through the page cache, which all ranks and workers share, so more pairs cost almost no memory per process and no time
at the start.

The footer has a checksum of each block of `BLOCK` records, compared whenever one of them is read, and one of all
records. An index of version 0.1 has only the latter, which is then compared when the index is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.formats.plain_file import read_at, require_file
from pixnerd_plugin.formats.schema import Rule, check_table, integer, naming, sequence, text
from pixnerd_plugin.formats.text_file import parse_table
from pixnerd_plugin.registry import DATASETS

from .base import digest
from .captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, CaptionedDataset
from .decode import MAX_IMAGE_BYTES, encoded_shape
from .faults import DamagedImage
from .image_folder import checked_folder

# Offsets and sizes are in bytes. caption_kind: 0 none, else the place in CAPTION_SUFFIXES, from 1.
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
# Height and width of a picture in pixels, as displayed; of larger ones, their ratio. 0: not known.
SHAPE = np.dtype([('height', '<u2'), ('width', '<u2')])
MAX_SIDE = 2**16 - 1

SCANNED = np.dtype([*PAIR.descr, *SHAPE.descr])
"""A pair with the shape of its picture, as `scan_shard` finds it."""

_MAGIC = b'PNSHARD1'
_TAIL = len(_MAGIC) + 8

BLOCK = 256
"""Number of records that share a checksum. Reading one reads all of them, 8 KiB."""

# Limits for an untrusted index. One without checksums of its blocks is read as a whole, up to 4 GiB.
MAX_SHARDS, MAX_PAIRS, MAX_PAIRS_READ = 2**20, 2**30, 2**27
# Limit of the footer: a fixed size, plus a share of the file. Parsing takes 30 times its size.
_MAX_FOOTER, _FOOTER_SHARE = 2**22, 32


def _is_inside(name: Any) -> bool:
    """Whether a name from an index stays inside the shards' folder, on every system."""
    if type(name) is not str or not 0 < len(name) <= 4096 or '\0' in name:
        return False
    name = name.replace('\\', '/')
    return not re.match('/|[A-Za-z]:', name) and '..' not in name.split('/')


_SHARD = dict(
    name=Rule('a path below the data root', _is_inside), size=integer(0, 2**63 - 1), num_pairs=integer(0, MAX_PAIRS)
)
_ROW = Rule('a list of name, size and num_pairs', lambda value: type(value) is list and len(value) == len(_SHARD))
_FOOTER = dict(
    shards=sequence(_ROW, 1, MAX_SHARDS),
    records_sha256=text(64),
    records_crc32=text(8 * -(-MAX_PAIRS // BLOCK)),
    shapes_crc32=integer(0, 2**32 - 1),
)


class Shard(NamedTuple):
    """A shard of the index: path relative to the shards' folder, size of the file in bytes, number of pairs."""

    name: str
    size: int
    num_pairs: int


class Pair(NamedTuple):
    """A record of the index; see `PAIR`."""

    shard: int
    image_size: int
    caption_size: int
    caption_kind: int
    image_offset: int
    caption_offset: int


def write_shard_index(path: str, shards: Iterable[tuple[Shard, np.ndarray]]) -> None:
    """Write an index atomically from each shard and its pairs, whose `shard` field is filled in here.

    Pairs are of dtype `PAIR`, or all of them `SCANNED`; then the index has the shapes too.
    """
    written, sha, checksums, pending, shapes, total = [], hashlib.sha256(), bytearray(), b'', bytearray(), 0
    size = BLOCK * PAIR.itemsize
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        for number, (shard, found) in enumerate(shards):
            pairs = np.zeros(len(found), PAIR)
            for name in PAIR.names or ():
                pairs[name] = found[name]
            pairs['shard'] = number
            total += len(pairs)
            if found.dtype == SCANNED:
                shapes += np.stack((found['height'], found['width']), axis=1).tobytes()
            file.write(pairs.tobytes())
            sha.update(pairs.tobytes())
            written.append(shard)
            pending += pairs.tobytes()
            whole = len(pending) // size * size
            for start in range(0, whole, size):
                checksums += zlib.crc32(pending[start : start + size]).to_bytes(4, 'little')
            pending = pending[whole:]
        if pending:
            checksums += zlib.crc32(pending).to_bytes(4, 'little')
        footer: dict[str, Any] = dict(shards=written, records_sha256=sha.hexdigest(), records_crc32=checksums.hex())
        if total and len(shapes) == total * SHAPE.itemsize:
            file.write(shapes)
            footer['shapes_crc32'] = zlib.crc32(shapes)
        encoded = json.dumps(footer).encode()
        file.write(encoded + len(encoded).to_bytes(8, 'little') + _MAGIC)


class ShardIndex:
    """An index file: ``index[i]`` is a `Pair`, `shards` their files, `fingerprint` its identity. Pickled as its path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or names a file outside the shards' folder. ``index[i]`` raises it if the record
            does not match its checksum or its shard.
    """

    def __init__(self, path: str):
        self.path = path
        self._rebuild = 'build it with tools/build_shard_index.py'
        if not os.path.exists(path):
            raise FileNotFoundError(f'there is no shard index {path!r}; {self._rebuild}')
        require_file(Path(path), 'shard index')
        try:
            footer = self._read_footer()
        except ValueError as error:
            raise ValueError(f'{path!r} is no whole shard index: {error}; {self._rebuild} again') from None
        self.shards = [Shard(*row) for row in footer['shards']]
        # Without the shapes and the checksums of blocks: runs can resume after an older index has been built again.
        described = dict(shards=self.shards, records_sha256=footer['records_sha256'])
        self.fingerprint = digest([json.dumps(described)])
        self._starts = np.cumsum([0, *(shard.num_pairs for shard in self.shards)])
        self._shapes_crc32 = footer.get('shapes_crc32')
        self._reader = ShardReader([path])

    def _read_footer(self) -> dict[str, Any]:
        with open(self.path, 'rb') as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL))
            tail = file.read()
            length = int.from_bytes(tail[:8], 'little')
            start = end - _TAIL - length
            if len(tail) != _TAIL or tail[8:] != _MAGIC or start < 0:
                raise ValueError('its end is not that of one; is it cut short?')
            limit = _MAX_FOOTER + end // _FOOTER_SHARE
            if length > limit:
                raise ValueError(f'its footer claims {length} bytes, more than {limit}')
            file.seek(start)
            encoded = file.read(length)
        footer = parse_table('its footer', _decoded(encoded), _FOOTER, ('shards', 'records_sha256'), limit)
        for number, row in enumerate(footer['shards']):
            check_table(f'shard {number}', dict(zip(_SHARD, row, strict=True)), _SHARD)
        num_pairs = sum(row[2] for row in footer['shards'])
        each = PAIR.itemsize + (SHAPE.itemsize if 'shapes_crc32' in footer else 0)
        if num_pairs == 0 or num_pairs * each != start:
            raise ValueError(f'it should hold {num_pairs} pairs, at least 1, but its length differs')
        integer(1, MAX_PAIRS).check('its number of pairs', num_pairs)
        self._checksums = self._read_checksums(footer, num_pairs)
        return footer

    def _read_checksums(self, footer: dict[str, Any], num_pairs: int) -> np.ndarray | None:
        if 'records_crc32' in footer:
            with naming('its records_crc32'):
                checksums = np.frombuffer(bytes.fromhex(footer['records_crc32']), '<u4')
            if len(checksums) != -(-num_pairs // BLOCK):
                raise ValueError(f'it has {len(checksums)} checksums for {num_pairs} pairs')
            return checksums
        integer(1, MAX_PAIRS_READ).check('without checksums of its blocks, its number of pairs', num_pairs)
        sha, left = hashlib.sha256(), num_pairs * PAIR.itemsize
        with open(self.path, 'rb') as file:
            while chunk := file.read(min(left, 2**20)):
                sha.update(chunk)
                left -= len(chunk)
        if sha.hexdigest() != footer['records_sha256']:
            raise ValueError('its records do not fit their checksum')
        return None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        block, row = divmod(int(index), BLOCK)
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(self))
        try:
            records = self._reader.read(0, start * PAIR.itemsize, (stop - start) * PAIR.itemsize)
        except OSError as error:
            raise ValueError(f'{self.path!r} cannot be read any more ({error}); {self._rebuild} again') from None
        if self._checksums is not None and zlib.crc32(records) != self._checksums[block]:
            raise ValueError(
                f'{self.path!r}: pairs {start} to {stop - 1} do not fit their checksum; {self._rebuild} again'
            )
        pair = Pair(*np.frombuffer(records, PAIR)[row].item())
        if not self._fits(pair, int(index)):
            raise ValueError(f'{self.path!r}: pair {index} does not lie in its shard; {self._rebuild} again')
        return pair

    def shapes(self) -> np.ndarray | None:
        """Height and width of each picture as displayed, (N, 2), 0 where they are not known; None in an older index.

        Raises:
            ValueError: if they do not match their checksum.
        """
        if self._shapes_crc32 is None:
            return None
        with open(self.path, 'rb') as file:
            file.seek(len(self) * PAIR.itemsize)
            encoded = file.read(len(self) * SHAPE.itemsize)
        if zlib.crc32(encoded) != self._shapes_crc32:
            raise ValueError(f'{self.path!r}: the shapes do not fit their checksum; {self._rebuild} again')
        return np.frombuffer(encoded, '<u2').reshape(-1, 2)

    def _fits(self, pair: Pair, index: int) -> bool:
        if pair.shard >= len(self.shards) or not self._starts[pair.shard] <= index < self._starts[pair.shard + 1]:
            return False
        size = self.shards[pair.shard].size
        return (
            0 < pair.image_size <= MAX_IMAGE_BYTES
            and pair.image_offset + pair.image_size <= size
            and pair.caption_size <= MAX_CAPTION_BYTES
            and pair.caption_offset + pair.caption_size <= size
            and pair.caption_kind <= len(CAPTION_SUFFIXES)
        )

    def __reduce__(self) -> tuple[type[ShardIndex], tuple[str]]:
        return ShardIndex, (self.path,)


def _decoded(encoded: bytes) -> str:
    try:
        return encoded.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'byte {error.start} of its footer is not UTF-8') from None


class ShardReader:
    """Read byte ranges of shards, keeping the `max_open` most recently used ones open.

    It is safe to share across a fork, because `read_at` moves no file offset. Open files are not pickled.
    """

    def __init__(self, paths: list[str], max_open: int = 32):
        self.paths = paths
        self.max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`; raise OSError if the shard cannot be read or is too short."""
        if shard not in self._open:
            if len(self._open) == self.max_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | getattr(os, 'O_BINARY', 0))
        self._open.move_to_end(shard)
        encoded = read_at(self._open[shard], offset, size)
        if len(encoded) != size:
            raise OSError(f'{self.paths[shard]} ends before byte {offset + size}')
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
    """Pictures and captions in tar shards (webdataset layout), in any order through an index.

    Samples are ``dict(img_bytes, img_path, captions, text)``, where ``img_path`` is the shard and the picture's offset
    in it. `shard_sizes` lets ``ResumableSampler(shards_per_block=...)`` shuffle the shards and then the pairs within
    blocks.

    Args:
        data_root: the folder of the shards.
        index: the file that ``tools/build_shard_index.py`` made from them.
        kwargs: `CaptionedDataset`'s arguments, such as `pipeline`, `max_damaged` and `one_caption_per_file`.
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
                    f'shard {path!r} {state}; the index {self.index.path!r} is out of date, build it again'
                )
        self.shard_sizes = np.array([shard.num_pairs for shard in self.index.shards])
        self.fingerprint = self.index.fingerprint
        self._reader = ShardReader(paths)
        super().__init__(data_root=root, **kwargs, serialize_data=False)

    def load_data_list(self) -> list[dict[str, Any]]:
        return []

    def __len__(self) -> int:
        return len(self.index)

    def _get_unserialized_subset(self, indices: Any) -> list[dict[str, Any]]:
        raise NotImplementedError('a ShardDataset has no subsets: build an index of fewer shards')

    def describe(self, index: int) -> str:
        return self._where(self.index[index])

    def captions(self, index: int) -> list[str]:
        """The captions of a pair, the same as in its sample, without reading its picture."""
        return self._with_captions(index, self.index[index], {})['captions']

    def shape_of(self, index: int) -> tuple[int, int]:
        pair = self.index[index]

        def read(size: int) -> bytes:
            return self._reader.read(pair.shard, pair.image_offset, size)

        try:
            return encoded_shape(read, pair.image_size)
        except OSError as error:
            raise DamagedImage(str(error)) from error

    def all_shapes(self) -> np.ndarray:
        found = self.index.shapes()
        return super().all_shapes() if found is None else np.maximum(found, 1)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        pair = self.index[idx]
        try:
            encoded = self._reader.read(pair.shard, pair.image_offset, pair.image_size)
        except OSError as error:
            raise DamagedImage(str(error)) from error
        return self._with_captions(idx, pair, dict(img_bytes=encoded))

    def _where(self, pair: Pair) -> str:
        return f'{self._reader.paths[pair.shard]}@{pair.image_offset}'

    def _with_captions(self, index: int, pair: Pair, info: dict[str, Any]) -> dict[str, Any]:
        def read() -> tuple[bytes, str]:
            if pair.caption_kind == 0:
                raise ValueError(f'no readable {" or ".join(CAPTION_SUFFIXES)} in its shard')
            encoded = self._reader.read(pair.shard, pair.caption_offset, pair.caption_size)
            return encoded, CAPTION_SUFFIXES[pair.caption_kind - 1]

        return self.with_captions(dict(info, sample_idx=index, img_path=self._where(pair)), read)

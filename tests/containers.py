"""Safetensors, tar and zip files as trees of all their fields, and files of such trees, however wrong."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.mutations import encode


def number(value: Any) -> int:
    """What of a mutated value fits into a binary field."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else 2**64 - 1
    return len(value) if value is not None else 0


def pack(code: str, *values: Any) -> bytes:
    sizes = [8 * struct.calcsize(f'<{letter}') for letter in code]
    return struct.pack(f'<{code}', *(number(value) % 2**size for value, size in zip(values, sizes, strict=True)))


def raw(value: Any) -> bytes:
    """A mutated text as bytes."""
    return value.encode('utf-8', 'surrogatepass') if isinstance(value, str) else encode(value).encode()


def safetensors_tree(content: bytes, key: str | None) -> tuple[dict, bytes]:
    """The header and the description in the metadata, as one tree, and the data."""
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop('__metadata__')
    # In one order, so that a seed means the same mutations.
    header = dict(sorted(header.items()))
    return dict(header=header, metadata=json.loads(metadata[key]) if key else metadata), content[8 + length :]


def build_safetensors(data: bytes, key: str | None) -> Callable[[Any], bytes]:
    def build(tree: Any) -> bytes:
        header = tree
        if isinstance(tree, dict) and isinstance(tree.get('header'), dict):
            metadata = tree.get('metadata')
            header = dict(tree['header'], __metadata__={key: encode(metadata)} if key else metadata)
        text = raw(encode(header))
        return len(text).to_bytes(8, 'little') + text + data

    return build


def tar_member(member: dict) -> bytes:
    content = raw(member.get('content'))
    block = bytearray(512)
    name = raw(member.get('name'))[:100]
    block[: len(name)] = name
    size = member.get('size')
    encoded = raw(size)[:12] if isinstance(size, str) else b'\x80' + pack('Q', size)[::-1].rjust(11, b'\0')
    block[124 : 124 + len(encoded)] = encoded
    block[148:156] = b' ' * 8
    block[156:157] = raw(member.get('kind'))[:1]
    magic, prefix = raw(member.get('magic'))[:8], raw(member.get('prefix'))[:155]
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    checksum = member.get('checksum')
    total = sum(block) if checksum == 'true' else number(checksum) % 8**6
    block[148:156] = f'{total:06o}\0 '.encode()
    return bytes(block) + content + bytes(-len(content) % 512)


def build_tar(tree: Any) -> bytes:
    members = tree.get('members') if isinstance(tree, dict) else tree
    members = members if isinstance(members, list) else [members]
    return b''.join(tar_member(m) if isinstance(m, dict) else raw(m) for m in members) + bytes(1024)


def zip_tree(arrays: dict[str, np.ndarray]) -> tuple[dict, dict[str, bytes]]:
    entries, data = [], {}
    for name, array in arrays.items():
        header = dict(descr=array.dtype.str, fortran_order=False, shape=list(array.shape))
        fields = dict(flags=0, method=0, crc=None, packed=None, size=None)
        entries.append(
            dict(name=f'{name}.npy', array=name, header=header, magic='\x01', offset=None, **fields, local={})
        )
        data[name] = array.tobytes()
    return dict(entries=entries, end=dict(count=None, size=None, offset=None, comment='')), data


def build_zip(data: dict[str, bytes]) -> Callable[[Any], bytes]:
    def build(tree: Any) -> bytes:
        if not isinstance(tree, dict):
            return raw(tree)
        content, directory = b'', b''
        entries = tree.get('entries')
        entries = [entry for entry in (entries if isinstance(entries, list) else []) if isinstance(entry, dict)]
        for entry in entries:
            header = entry.get('header')
            if isinstance(header, dict) and isinstance(header.get('shape'), list):
                header = dict(header, shape=tuple(header['shape']))
            text = repr(header).encode('utf-8', 'backslashreplace')
            version = (raw(entry.get('magic')) or b'\0')[:1]
            length = (
                len(text).to_bytes(2 if version == b'\1' else 4, 'little')
                if len(text) < 2**16 or version != b'\1'
                else b'\xff\xff'
            )
            body = b'\x93NUMPY' + version + b'\0' + length + text + data.get(str(entry.get('array')), b'')
            crc = zlib.crc32(body) if entry.get('crc') is None else entry['crc']
            packed = len(body) if entry.get('packed') is None else entry['packed']
            size = len(body) if entry.get('size') is None else entry['size']
            name = raw(entry.get('name'))[: 2**16 - 1]
            common = pack('HHHHLLLHH', entry.get('flags'), entry.get('method'), 0, 33, crc, packed, size, len(name), 0)
            offset = len(content) if entry.get('offset') is None else entry['offset']
            directory += b'PK\1\2' + pack('HH', 20, 20) + common + pack('HHHLL', 0, 0, 0, 0, offset) + name
            content += b'PK\3\4' + pack('H', 20) + common + name + body
        end = tree.get('end') if isinstance(tree.get('end'), dict) else {}
        count, size, offset = (
            known if end.get(key) is None else end[key]
            for key, known in (('count', len(entries)), ('size', len(directory)), ('offset', len(content)))
        )
        comment = raw(end.get('comment', ''))[: 2**16 - 1]
        return (
            content + directory + b'PK\5\6' + pack('HHHHLLH', 0, 0, count, count, size, offset, len(comment)) + comment
        )

    return build

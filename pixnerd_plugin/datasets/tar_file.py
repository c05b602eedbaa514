"""Reading the members of an untrusted tar file: always forwards, in bounded memory, continuing after broken parts.

Python's tarfile reads extended headers of any size into memory, accepts negative sizes, and searches a sparse file to
its end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from pixnerd_plugin.formats.plain_file import read_at

BLOCK = 512

# A long name, or the extended header of pax. Writers use a few hundred bytes.
MAX_EXTENDED = 2**16

# Bytes to search for a header, at each broken place and in total: the next header is not far after a broken picture.
MAX_GAP, MAX_GAPS = 2**26, 2**28

_CHUNK = 2**20
_REGULAR, _WITHOUT_DATA = b'\x0007', b'123456'
_PAX_RECORD = re.compile(rb'(\d{1,6}) ([^=]{1,200})=')


class Member(NamedTuple):
    """A member; ``problem`` is empty if it is a complete regular file with a name inside its folder."""

    name: str
    offset: int
    size: int
    problem: str = ''


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes


def read_members(path: str) -> Iterator[Member]:
    """Yield the members in order, and each broken part between them as a member without a name.

    ``offset`` and ``size`` are those of the content, in bytes.
    """
    end = os.path.getsize(path)
    with open(path, 'rb', buffering=0) as file:
        if end == 0:
            yield Member('', 0, 0, 'an empty file')
        name, size, offset, searched = b'', None, 0, 0
        while offset < end:
            header = _parse(read_at(file.fileno(), offset, BLOCK))
            if header is None:
                name, size = b'', None
                found, is_zero = _find_header(
                    file.fileno(), offset, min(end, offset + MAX_GAP, offset + MAX_GAPS - searched)
                )
                if not is_zero:
                    yield Member('', offset, found - offset, f'header at byte {offset}')
                searched += found - offset
                if found < end and _parse(read_at(file.fileno(), found, BLOCK)) is None:
                    yield Member('', found, end - found, f'no member in the {found - offset} bytes before byte {found}')
                    return
                offset = found
                continue
            content = offset + BLOCK
            if header.kind in b'LKxXg':
                offset = content + _padded(header.size)
                if header.size > MAX_EXTENDED or offset > end:
                    yield Member('', content, header.size, f'extended header at byte {content}: too large or cut short')
                    continue
                extended = read_at(file.fileno(), content, header.size)
                if header.kind == b'L':
                    name = extended.rstrip(b'\0')
                elif header.kind in b'xX':
                    records = _pax_records(extended)
                    name = records.get(b'path', name)
                    size = _number(records[b'size'], 10) if b'size' in records else size
                continue
            header = header._replace(name=name or header.name, size=header.size if size is None else size)
            name, size = b'', None
            offset = content if header.kind in _WITHOUT_DATA else content + _padded(header.size)
            yield _member(header, content, end)


def _member(header: _Header, content: int, end: int) -> Member:
    name = header.name.decode('utf-8', 'surrogateescape')
    is_regular = header.kind in _REGULAR and not name.endswith('/')
    if header.kind == b'5' or (header.kind in _REGULAR and not is_regular):
        problem = 'a folder'
    elif not is_regular or name.startswith('/') or '..' in name.split('/') or '\0' in name:
        problem = 'a link, or a name outside the shard'
    else:
        problem = 'cut short' if content + header.size > end else ''
    return Member(name, content, header.size, problem)


def _parse(block: bytes) -> _Header | None:
    """The header, or None if its checksum is wrong."""
    checksum, size = _number(block[148:156], 8), _number(block[124:136], 8)
    if len(block) < BLOCK or checksum is None or size is None:
        return None
    rest = block[:148] + block[156:]
    total = sum(rest) + 8 * ord(' ')
    # Old writers summed signed bytes.
    if checksum not in (total, total - 256 * sum(byte > 127 for byte in rest)):
        return None
    name, prefix = block[:100].split(b'\0')[0], block[345:500].split(b'\0')[0]
    if prefix and block[257:263] == b'ustar\0':
        name = prefix + b'/' + name
    return _Header(name, size, block[156:157])


def _number(field: bytes, base: int) -> int | None:
    if field[:1] == b'\x80':
        number = int.from_bytes(field[1:], 'big')
    else:
        digits = field.split(b'\0')[0].strip()
        if not re.fullmatch(rb'[0-7]{0,20}' if base == 8 else rb'[0-9]{1,20}', digits):
            return None
        number = int(digits or b'0', base)
    return number if number < 2**63 else None


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    records, start = {}, 0
    while match := _PAX_RECORD.match(content, start):
        stop = start + int(match[1])
        if stop <= match.end() or stop > len(content):
            break
        records[match[2]] = content[match.end() : stop - 1]
        start = stop
    return records


def _find_header(file: int, start: int, stop: int) -> tuple[int, bool]:
    """The first valid header from ``start``, or ``stop``; and whether the bytes before it are all zero."""
    is_zero, position, size = True, start, 0
    while position < stop:
        position += size
        # It is usually close by.
        size = min(max(2 * size, 8 * BLOCK), _CHUNK, stop - position)
        chunk = read_at(file, position, size)
        if chunk.count(0) == len(chunk):
            continue
        for offset in range(0, len(chunk), BLOCK):
            block = chunk[offset : offset + BLOCK]
            if block.count(0) == len(block):
                continue
            if _parse(block) is not None:
                return position + offset, is_zero
            is_zero = False
    return stop, is_zero


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK

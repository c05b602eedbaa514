"""The directory of a zip archive as torch writes it: stored records in one folder, checked before anything is read."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .lazy import Span
from .plain_file import require_written

# Torch's own names inside the folder. It writes nothing compressed, nothing encrypted, and no comment.
_NAMES = re.compile(
    r'data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id'
)

# A record takes some 100 bytes here, and ten times that in memory; a checkpoint has some thousands.
MAX_DIRECTORY = 4 * 2**20
# What torch sets: sizes follow the data, names are UTF-8. Others mean encryption or patches, which torch does not read.
_FLAGS = 0x808
_DIRECTORY = 0x10
"""MS-DOS attribute: torch takes the record for a folder, and leaves the memory for its content as it happens to be."""
_BLOCK = 2**20
_END, _END64, _LOCATOR64 = struct.Struct('<4s4H2LH'), struct.Struct('<4sQ2H2L4Q'), struct.Struct('<4sLQL')


class Archive(NamedTuple):
    path: Path
    records: dict[str, Span]

    def read(self, name: str, limit: int) -> bytes:
        """A small record, checked against its checksum."""
        if name not in self.records:
            raise ValueError(f'it has no {name}')
        span = self.records[name]
        if span.size > limit:
            raise ValueError(f'its {name} has {span.size} bytes, more than {limit}')
        with open(self.path, 'rb') as file:
            file.seek(span.offset)
            content = file.read(span.size)
        if len(content) != span.size or zlib.crc32(content) != span.crc:
            raise ValueError(f'its {name} does not fit its checksum')
        return content

    def verify(self) -> None:
        """Compare all records with their checksums; this reads the whole file, a block at a time.

        Raises:
            ValueError: naming the first record that has another.
        """
        with open(self.path, 'rb') as file:
            for name, span in self.records.items():
                file.seek(span.offset)
                crc, left = 0, span.size
                while left and (block := file.read(min(left, _BLOCK))):
                    crc, left = zlib.crc32(block, crc), left - len(block)
                if left or crc != span.crc:
                    raise ValueError(f'the checksum of its {name} is wrong')


def open_archive(path: Path) -> Archive:
    """Read the directory.

    Raises:
        ValueError: if it is not one that torch writes, with the reason; compressed records (zip bombs), links, names
            that leave the folder, records that overlap, are twice there or end after the file are refused here.
    """
    require_written(path)
    with open(path, 'rb') as file:
        try:
            check_directory_size(file)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            spans = [_span(path, file, entry) for entry in entries]
        # An OSError is of a place before the start of the file.
        except (zipfile.BadZipFile, struct.error, OverflowError, NotImplementedError, EOFError, OSError) as error:
            raise ValueError(f'its directory is damaged ({error})') from None
    folder = entries[0].filename.split('/')[0] if entries else ''
    records: dict[str, Span] = {}
    for entry, span in zip(entries, spans, strict=True):
        name = entry.filename.removeprefix(f'{folder}/')
        if name == entry.filename or not _NAMES.fullmatch(name):
            raise ValueError(f'it has a record {entry.filename!r}, which is none of a checkpoint')
        if name in records:
            raise ValueError(f'it has the record {name!r} twice')
        records[name] = span
    end = 0
    for span in sorted(spans, key=lambda span: span.offset):
        if span.offset < end:
            raise ValueError('its records overlap')
        end = span.offset + span.size
    if end > path.stat().st_size:
        raise ValueError('it is cut short')
    return Archive(path, records)


def check_directory_size(file: BinaryIO, limit: int = MAX_DIRECTORY) -> None:
    """Bound what zipfile will read into memory; ValueError if it is more, or no archive."""
    size = file.seek(0, 2)
    if size < _END.size:
        raise ValueError('it is no zip archive; is it complete?')
    file.seek(size - _END.size)
    mark, *_, directory, _, comment = _END.unpack(file.read())
    if mark != b'PK\5\6' or comment:
        raise ValueError('it does not end as a zip archive; is it complete, and saved by torch 1.6 or later?')
    # The record of a large archive lies before a locator, whose number in the ordinary record may be anything.
    before = size - _END.size - _LOCATOR64.size - _END64.size
    if before >= 0:
        file.seek(before)
        record, locator = _END64.unpack(file.read(_END64.size)), _LOCATOR64.unpack(file.read(_LOCATOR64.size))
        if locator[0] == b'PK\6\7':
            directory = record[8]
    if directory > limit:
        raise ValueError(f'its directory claims {directory} bytes')


def _span(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> Span:
    name = entry.filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError(f'its record {name!r} is compressed, which torch never does')
    if entry.flag_bits & ~_FLAGS or stat.S_ISLNK(entry.external_attr >> 16) or entry.external_attr & _DIRECTORY:
        raise ValueError(f'its record {name!r} is encrypted, a patch, a link or a folder')
    # zipfile shifts offsets by where it thinks the archive starts, below zero in a damaged one.
    file.seek(max(entry.header_offset, 0))
    header = file.read(30)
    mark, name_length, extra_length = *struct.unpack_from('<4s', header), *struct.unpack_from('<2H', header, 26)
    if mark != b'PK\3\4' or file.read(name_length) != name.encode():
        raise ValueError(f'its record {name!r} is not where the directory says')
    return Span(path, entry.header_offset + 30 + name_length + extra_length, entry.file_size, entry.CRC)

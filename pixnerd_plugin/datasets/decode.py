"""Decoding a picture that may be damaged or hostile."""

from __future__ import annotations

import importlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from .faults import DamagedImage

# Pillow recognises more formats by their content, whatever the file's name; for one of them it starts Ghostscript.
SUFFIXES = dict(
    JPEG=('.jpg', '.jpeg', '.jfif'),
    PNG=('.png',),
    WEBP=('.webp',),
    BMP=('.bmp',),
    GIF=('.gif',),
    TIFF=('.tif', '.tiff'),
    AVIF=('.avif',),
    HEIF=('.heic', '.heif'),
)
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

# What decodes the formats that not every Pillow knows.
_NEEDS = dict(AVIF='Pillow 11.3 or newer', HEIF='pip install pillow-heif')

# The size of the largest image that Pillow decodes by default, at 3 bytes a pixel.
MAX_IMAGE_BYTES = 2**28

# Bytes of a picture within which its header nearly always is.
_HEADER = 2**14

# Each scan of a progressive JPEG goes over all pixels, and takes only 100 bytes. Encoders write about 10.
MAX_SCANS = 16

# Exceptions that Pillow's decoders were seen to raise on damaged files.
_DECODE_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,  # of the decoders of AVIF and HEIF
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode_image(source: str | os.PathLike[str] | bytes, exif_orientation: bool = False) -> Image.Image:
    """Decode a file, or the bytes of one, to RGB.

    Raises:
        DamagedImage: if it cannot be decoded, has none of the formats in `SUFFIXES`, is larger than `MAX_IMAGE_BYTES`,
            or has more pixels than Pillow's ``Image.MAX_IMAGE_PIXELS``, or as many in `MAX_SCANS` scans.
    """
    with _faults(), _opened(source) as file, Image.open(file, formats=_formats()) as picture:
        _check_scans(file, picture)
        picture.load()
        if exif_orientation:
            ImageOps.exif_transpose(picture, in_place=True)
        return to_rgb(picture)


def picture_shape(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Height and width of a picture as displayed, from its header alone; `source` may be the first bytes of a file.

    Raises:
        DamagedImage: if it has no readable header of one of the formats in `SUFFIXES`.
    """
    with _faults(), _opened(source) as file, Image.open(file, formats=_formats()) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            # Of this format, newer versions of Pillow give the size as displayed.
            width, height = picture.tag_v2[TiffImagePlugin.IMAGEWIDTH], picture.tag_v2[TiffImagePlugin.IMAGELENGTH]
        # For EXIF that does not come before the pixels of a PNG, Pillow would decode them.
        if picture.format != 'PNG' or 'exif' in picture.info:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)
        return height, width


def encoded_shape(read: Callable[[int], bytes], size: int) -> tuple[int, int]:
    """`picture_shape` of a picture of `size` bytes, of which ``read(n)`` returns the first n."""
    try:
        return picture_shape(read(min(size, _HEADER)))
    except DamagedImage:
        if size <= _HEADER:
            raise
        return picture_shape(read(size))  # a header may come late, after a preview or a colour profile


@contextmanager
def _faults() -> Iterator[None]:
    """Raise `DamagedImage` for whatever Pillow raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            yield
    except DamagedImage:
        raise
    except _DECODE_ERRORS as error:
        raise DamagedImage(f'{type(error).__name__}: {" ".join(str(error).split())[:300]}') from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB: transparency goes over white, and 16 bits are cut to the upper 8."""
    if picture.mode == 'F':
        raise DamagedImage('floating-point pixels, whose white is unknown')
    if picture.mode.startswith('I'):
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    elif picture.mode in ('LA', 'PA', 'RGBA', 'RGBa') or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return picture if picture.mode == 'RGB' else picture.convert('RGB')


def _check_scans(file: IO[bytes], picture: Image.Image) -> None:
    if picture.format not in ('JPEG', 'MPO') or not Image.MAX_IMAGE_PIXELS:
        return
    position = file.tell()
    file.seek(0)
    scans, last = 0, b''
    while chunk := file.read(2**20):
        # In the data of a scan, 0xff is never followed by this.
        scans += (last + chunk).count(b'\xff\xda')
        last = chunk[-1:]
    file.seek(position)
    if scans * picture.width * picture.height > MAX_SCANS * Image.MAX_IMAGE_PIXELS:
        raise DamagedImage(f'{picture.width}x{picture.height} pixels in {scans} scans, which would take minutes')


@cache
def _formats() -> tuple[str, ...]:
    """Those of `SUFFIXES` that this Pillow, and pillow-heif if it is installed, can decode."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module('pillow_heif').register_heif_opener()
    return tuple(name for name in SUFFIXES if name in Image.OPEN)


@cache
def readable_suffixes() -> tuple[str, ...]:
    """The suffixes, in lower case, of pictures that can be decoded here."""
    return tuple(suffix for name in _formats() for suffix in SUFFIXES[name])


def missing_decoder(suffix: str) -> str | None:
    """What to install for pictures with this suffix; None if they can be decoded, or are no pictures."""
    names = [name for name, suffixes in SUFFIXES.items() if suffix in suffixes and name not in _formats()]
    return _NEEDS.get(names[0], 'another build of Pillow') if names else None


def _opened(source: str | os.PathLike[str] | bytes) -> IO[bytes]:
    # An open file instead of its path, which Pillow would map: if it is then truncated, the process dies.
    if isinstance(source, bytes):
        return io.BytesIO(source)
    found = os.stat(source)
    if not stat.S_ISREG(found.st_mode):
        raise DamagedImage('no file, but a folder, pipe or device')
    if found.st_size > MAX_IMAGE_BYTES:
        raise DamagedImage(f'{found.st_size} bytes, more than {MAX_IMAGE_BYTES}')
    return open(source, 'rb')

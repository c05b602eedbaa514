"""Transforms in mmcv's style: a dict in, the dict out, with the image in ``results['img']``, (H, W, 3) uint8 RGB.

mmcv's own transforms (RandomFlip, RandomGrayscale, ...) can go anywhere between `LoadRGB` and `PackInputs`. Random
transforms draw from numpy's global generator, as in mmcv; the dataset seeds it for each visit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore
from pixnerd_plugin.registry import TRANSFORMS

from .decode import decode_image
from .faults import DamagedImage


def adm_center_crop(picture: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Resize so that it just covers `size`, and crop the centre, as ADM does for squares (Dhariwal and Nichol, 2021).

    A box filter halves the image while it is at least twice as large on both sides; a bicubic filter does the rest.

    Args:
        size: side of the square, or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    covering = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    picture = _resize(picture, *covering, Image.Resampling.BICUBIC)
    return _crop(picture, (picture.width - width) // 2, (picture.height - height) // 2, width, height)


def resize_center_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resize with an antialiased bilinear filter so that it just covers (height, width), and crop the centre."""
    scale = max(width / picture.width, height / picture.height)
    covering = max(width, int(picture.width * scale)), max(height, int(picture.height * scale))
    picture = _resize(picture, *covering, Image.Resampling.BILINEAR)
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return _crop(picture, left, top, width, height)


def _resize(picture: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    # A single row of 20000 pixels would grow to 4 GB before the crop.
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise DamagedImage(f'{picture.width}x{picture.height} is too elongated: resized, it is {width}x{height}')
    return picture.resize((width, height), resample)


def _crop(picture: Image.Image, left: int, top: int, width: int, height: int) -> Image.Image:
    return picture.crop((left, top, left + width, top + height))


def _image(results: dict[str, Any]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(results['img']))


def _with_image(results: dict[str, Any], picture: Image.Image) -> dict[str, Any]:
    # A copy, because an array over Pillow's memory is read-only, and other transforms may write to it.
    results['img'] = np.array(picture)
    results['img_shape'] = results['img'].shape[:2]
    return results


def _positive(size: int) -> int:
    if not isinstance(size, int) or size <= 0:
        raise ValueError(f'size={size!r} must be a positive integer, in pixels')
    return size


class Transform(ABC):
    """A step of a data pipeline, with mmcv's interface, so that both can be mixed."""

    def __call__(self, results: dict) -> dict | None:
        return self.transform(results)

    @abstractmethod
    def transform(self, results: dict) -> dict | None:
        """Change the dict of one sample and return it, or return None to skip the sample."""


@TRANSFORMS.register_module()
class LoadRGB(Transform):
    """Decode ``results['img_bytes']`` if present, else the file ``results['img_path']``, to RGB; any mode of Pillow's.

    Args:
        exif_orientation: rotate the image as its EXIF tag says. ADM's reference statistics were made without.

    Raises:
        DamagedImage: if the image cannot be decoded.
    """

    def __init__(self, exif_orientation: bool = True):
        self.exif_orientation = exif_orientation

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        encoded = results.pop('img_bytes', None)
        picture = decode_image(results['img_path'] if encoded is None else encoded, self.exif_orientation)
        results = _with_image(results, picture)
        results['ori_shape'] = results['img_shape']
        return results


@TRANSFORMS.register_module()
class ADMCenterCrop(Transform):
    """ADM's resize and centre crop to (size, size), the ImageNet recipe; see `adm_center_crop`.

    In the batches of `BucketBatchSampler`, this and the next two bring pictures to the batch's shape instead.
    """

    def __init__(self, size: int):
        self.size = _positive(size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        return _with_image(results, adm_center_crop(_image(results), results.get('bucket', self.size)))


@TRANSFORMS.register_module()
class ResizeCenterCrop(Transform):
    """Bilinear resize and centre crop, the text-to-image recipe; see `resize_center_crop`.

    Args:
        size: side of the square, or (height, width), in pixels.
    """

    def __init__(self, size: int | tuple[int, int]):
        height, width = (size, size) if isinstance(size, int) else size
        self.height, self.width = _positive(height), _positive(width)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results.get('bucket', (self.height, self.width))
        return _with_image(results, resize_center_crop(_image(results), height, width))


@TRANSFORMS.register_module()
class RandomCropResize(Transform):
    """Cut out a random square and resize it (antialiased bicubic) to (size, size), for fine-tuning on few pictures.

    Args:
        size: side of the result in pixels.
        min_scale: minimum side of the square, as a share of the image's short side, in (0, 1].
    """

    def __init__(self, size: int, min_scale: float = 0.8):
        if not 0 < min_scale <= 1:
            raise ValueError(f'min_scale={min_scale} must be a share in (0, 1]')
        self.size, self.min_scale = _positive(size), min_scale

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        picture = _image(results)
        height, width = results.get('bucket', (self.size, self.size))
        scale = np.random.uniform(self.min_scale, 1)
        # The largest rectangle of that shape, times the scale.
        right = scale * min(picture.width, picture.height * width / height)
        bottom = scale * min(picture.height, picture.width * height / width)
        left, top = np.random.uniform(0, picture.width - right), np.random.uniform(0, picture.height - bottom)
        box = (left, top, left + right, top + bottom)
        return _with_image(results, picture.resize((width, height), Image.Resampling.BICUBIC, box=box))


@TRANSFORMS.register_module()
class RandomCaption(Transform):
    """Choose ``results['text']`` at random from ``results['captions']``; without this, it is the first."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        captions = results['captions']
        results['text'] = captions[np.random.randint(len(captions))]
        return results


@TRANSFORMS.register_module()
class PackInputs(Transform):
    """The end of a pipeline: ``dict(inputs=uint8 (3, H, W) RGB, data_samples={key: value})``.

    Args:
        keys: entries to put into `data_samples`, if the sample has them.

    Raises:
        ValueError: if the image is not (H, W, 3) uint8, or not of its batch's shape.
    """

    def __init__(self, keys: Sequence[str] = ('label', 'text', 'text_embeds', 'sample_idx')):
        self.keys = tuple(keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        img = results['img']
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f'PackInputs needs an (H, W, 3) uint8 image, got {img.shape} {img.dtype}')
        inputs = torch.from_numpy(np.array(img.transpose(2, 0, 1), order='C'))
        if results.get('bucket', img.shape[:2]) != img.shape[:2]:
            (height, width), (rows, columns) = img.shape[:2], results['bucket']
            raise ValueError(
                f'a picture of {height}x{width} pixels came to a batch of {rows}x{columns}; the pipeline needs a '
                "transform that sizes it: dict(type='ResizeCenterCrop', size=...)"
            )
        return dict(inputs=inputs, data_samples={key: results[key] for key in self.keys if key in results})


@TRANSFORMS.register_module()
class LoadTextEmbedding(Transform):
    """Add the stored embedding of the caption ``text`` as ``text_embeds`` (max_length, dim).

    Training then does not run the text encoder.

    Args:
        folder: folder that ``tools/precompute_text.py`` wrote.

    Raises:
        FileNotFoundError: if the folder has no embeddings.
    """

    def __init__(self, folder: str):
        self.store = TextEmbeddingStore(folder)
        if not len(self.store):
            raise FileNotFoundError(f'no text embeddings in {folder}: write them with tools/precompute_text.py')

    def transform(self, results: dict) -> dict:
        results['text_embeds'] = self.store[results['text']]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folder={str(self.store.folder)!r})'

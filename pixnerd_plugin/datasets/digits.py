"""scikit-learn's digits: 1797 scans of 8×8 pixels that ship with the library, for demos and tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from pixnerd_plugin.registry import DATASETS

from .base import ImageDataset, digest

_NUM_TEST = 360


@DATASETS.register_module()
class DigitsDataset(ImageDataset):
    """The handwritten digits of scikit-learn, as RGB images of any size, held in memory.

    Samples are ``dict(img, label)`` with ``img`` (size, size, 3) uint8, so the pipeline needs no `LoadRGB`.

    Args:
        size: side in pixels; the 8×8 originals are interpolated with Pillow's bicubic filter.
        split: 'train' (1437 digits), 'test' (the other 360, always the same) or 'all'.
        kwargs: `ImageDataset`'s arguments.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, size: int = 32, split: str = 'train', **kwargs: Any):
        if not isinstance(size, int) or size < 8:
            raise ValueError(f'size={size!r} must be an integer of at least 8, the side of the originals')
        check_split(split)
        self.size, self.split = size, split
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        images, labels = split_digits(self.split)
        self.fingerprint = digest(['digits', self.split, str(self.size)])
        return [dict(img=self._render(image), label=int(label)) for image, label in zip(images, labels, strict=True)]

    def _render(self, values: np.ndarray) -> np.ndarray:
        """Convert (8, 8) values in [0, 16] to a (size, size, 3) uint8 image."""
        # Resized as floats, so that values are rounded only once.
        smooth = Image.fromarray(values.astype(np.float32)).resize((self.size, self.size), Image.Resampling.BICUBIC)
        grey = np.clip(np.asarray(smooth) * (255 / 16), 0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)

    def describe(self, index: int) -> str:
        return f'digit {index}'


def check_split(split: str) -> None:
    """Raise a ValueError unless ``split`` is one of scikit-learn's digits."""
    if split not in ('train', 'test', 'all'):
        raise ValueError(f"split={split!r} must be 'train', 'test' or 'all'")


def split_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The scans (n, 8, 8) in [0, 16] and the labels (n,) of a split: 'train' (1437), 'test' (360) or 'all'."""
    check_split(split)
    images, labels = _all_digits()
    order = np.random.default_rng(0).permutation(len(images))
    chosen = np.sort(dict(train=order[_NUM_TEST:], test=order[:_NUM_TEST], all=order)[split])
    return images[chosen], labels[chosen]


@cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def clear_digits(split: str, neighbours: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The scans of a split that nobody would take for another digit, as `split_digits` gives them.

    Those are the ones whose nearest ``neighbours`` among the others of the split are all of the same digit: 92 %
    of 'train'.
    """
    images, labels = split_digits(split)
    flat = images.reshape(len(images), -1)
    squares = np.square(flat).sum(1)
    distances = squares[:, None] + squares - 2 * flat @ flat.T
    np.fill_diagonal(distances, np.inf)
    nearest = labels[np.argpartition(distances, neighbours, axis=1)[:, :neighbours]]
    clear = (nearest == labels[:, None]).all(1)
    return images[clear], labels[clear]

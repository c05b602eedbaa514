"""Reading pictures of coloured digits back: how many, which, in which colours and where.

The strokes are told from the background by their colour, and from each other by the gaps between them. A classifier
trained on scikit-learn's scans names the digits; colours and places are rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from pixnerd_plugin.datasets.captioned_digits import draw_digits
from pixnerd_plugin.datasets.digit_scenes import BACKGROUNDS, COLOURS, NEW_COLOURS, Digit, Scene
from pixnerd_plugin.datasets.digits import split_digits

SIDE = 16
"""Digits are cut out to squares of this side for the classifier."""

# Shares of the way from the background to the stroke's colour: what belongs to a digit, and what is sure to.
_INK, _CORE = 0.3, 0.7

# Height or width in pixels below which something is a speck.
_LEAST = 5


@dataclass(frozen=True)
class Found:
    """A digit found in a picture: its value, its colour by name, its centre (row, column) and height in pixels."""

    value: int
    colour: str
    center: tuple[float, float]
    height: int


def read_digits(pixels: np.ndarray) -> tuple[str, list[Found]]:
    """The name of the background of a picture (H, W, 3) uint8, and the digits on it, from left to right."""
    image = pixels.astype(np.float32)
    background = _nearest(np.median(_rim(image), axis=0), BACKGROUNDS)
    pieces = _pieces(image, background)
    if not pieces:
        return background, []
    values = _classifier().predict(np.stack([piece.crop for piece in pieces]))
    found = [
        Found(int(value), piece.colour, piece.center, piece.height) for value, piece in zip(values, pieces, strict=True)
    ]
    return background, sorted(found, key=lambda digit: digit.center[1])


@dataclass(frozen=True)
class _Piece:
    crop: np.ndarray
    colour: str
    center: tuple[float, float]
    height: int


def _rim(image: np.ndarray) -> np.ndarray:
    """The outermost pixels, (n, 3)."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.square(colour - palette[name]).sum()))


def _pieces(image: np.ndarray, background: str) -> list[_Piece]:
    """The digits of a picture as the classifier takes them."""
    from scipy import ndimage

    ground = np.array(BACKGROUNDS[background], np.float32)
    steps = {name: np.array(rgb, np.float32) - ground for name, rgb in (COLOURS | NEW_COLOURS).items()}
    # How far each pixel is on its way from the background to a colour, at most 1 for the colour itself.
    cover = np.clip(np.max([(image - ground) @ step / (step @ step) for step in steps.values()], axis=0), 0, 1)
    labels, _ = ndimage.label(cover > _INK, structure=np.ones((3, 3)))
    boxes = _join(ndimage.find_objects(labels), cover)
    pieces = []
    for rows, columns in boxes:
        part = cover[rows, columns]
        core = image[rows, columns][part >= min(_CORE, float(part.max()))]
        colour = _name_colour(np.median(core, axis=0) - ground, steps)
        center = (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2
        pieces.append(_Piece(_crop(part), colour, center, rows.stop - rows.start))
    return pieces


def _name_colour(away: np.ndarray, steps: dict[str, np.ndarray]) -> str:
    """The colour on whose way from the background a stroke is; a thin stroke does not get to the end of it."""

    def distance(name: str) -> float:
        step = steps[name]
        return float(np.square(away - np.clip(away @ step / (step @ step), _CORE, 1) * step).sum())

    return min(steps, key=distance)


def _join(boxes: list[tuple[slice, slice]], cover: np.ndarray) -> list[tuple[slice, slice]]:
    """Leave out specks, and join the parts of a broken stroke: boxes that overlap, seen from above or the side,
    nearly touch, and are not larger together than the largest is alone."""
    boxes = [box for box in boxes if cover[box].max() > 0.5 and max(_sides(box)) >= _LEAST]
    tallest = max((_sides(box)[0] for box in boxes), default=0)

    def belong(one: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
        small = min(_sides(one)[0], _sides(other)[0]) <= 0.7 * tallest
        apart = max(_gap(one[0], other[0]), _gap(one[1], other[1]))
        height, width = _sides(_around(one, other))
        return small and apart <= 2 and height <= 1.15 * tallest and width <= tallest

    while pair := next(((one, other) for one, other in combinations(boxes, 2) if belong(one, other)), None):
        boxes = [box for box in boxes if box not in pair] + [_around(*pair)]
    return boxes


def _sides(box: tuple[slice, slice]) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _gap(one: slice, other: slice) -> int:
    """Pixels between two intervals, negative where they overlap."""
    return max(one.start, other.start) - min(one.stop, other.stop)


def _around(one: tuple[slice, slice], other: tuple[slice, slice]) -> tuple[slice, slice]:
    return (
        slice(min(one[0].start, other[0].start), max(one[0].stop, other[0].stop)),
        slice(min(one[1].start, other[1].start), max(one[1].stop, other[1].stop)),
    )


def _crop(cover: np.ndarray) -> np.ndarray:
    """A digit in the middle of a square as high as itself, resized to ``SIDE``: (SIDE * SIDE,) in [0, 1]."""
    from PIL import Image

    side = max(cover.shape)
    square = np.zeros((side, side), np.float32)
    top, left = (side - cover.shape[0]) // 2, (side - cover.shape[1]) // 2
    square[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
    return np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).ravel()


@cache
def _classifier() -> Any:
    """Names digits that are cut out of pictures; trained on the scans that training pictures are made of."""
    from sklearn.svm import SVC

    crops, labels = [], []
    scans, values = split_digits('train')
    for side in (13, 28):
        for scan, value in zip(scans, values, strict=True):
            scene = Scene((32, 32), 'black', (Digit(int(value), 'cyan', (2, 2, side)),), '')
            pieces = _pieces(draw_digits(scene, [scan]).astype(np.float32), 'black')
            if len(pieces) == 1:
                crops.append(pieces[0].crop)
                labels.append(value)
    return SVC(gamma=0.02, C=10).fit(np.stack(crops), labels)

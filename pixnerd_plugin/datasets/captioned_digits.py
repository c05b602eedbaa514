"""Pictures of coloured handwritten digits with captions, made from scikit-learn's scans."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from pixnerd_plugin.registry import DATASETS

from .base import ImageDataset, digest
from .digit_scenes import BACKGROUNDS, COLOURS, NEW_COLOURS, Scene, draw_scene, draw_shape
from .digits import check_split, clear_digits

# Digits smaller than this are drawn several times larger, and averaged down.
_FINEST_SIDE = 64


@DATASETS.register_module()
class CaptionedDigits(ImageDataset):
    """One to four handwritten digits, in six colours on four backgrounds, with a caption in English.

    The index alone decides a picture and its caption: no file is read but scikit-learn's digits. Samples are
    ``dict(img, text)`` with ``img`` (H, W, 3) uint8 of one of the shapes 32x32, 32x64 and 64x32, times ``scale``.

    Args:
        num: number of pictures.
        scale: 1, 2 or 4; draws the same pictures this many times larger.
        split: which handwritten digits are used: 'train' (1437), 'test' (the other 360) or 'all'.
        held_out: leave out the combinations that training is not to show (`digit_scenes`).
        colours: names of the colours of the digits: two or more of the six, or the new ones, ``'orange'`` and
            ``'pink'``, alone or with others.
        seed: another seed makes other pictures.
        kwargs: `ImageDataset`'s arguments.
    """

    def __init__(
        self,
        num: int = 20_000,
        scale: int = 1,
        split: str = 'train',
        held_out: bool = True,
        colours: Sequence[str] = tuple(COLOURS),
        seed: int = 0,
        **kwargs: Any,
    ):
        if not isinstance(num, int) or num < 1:
            raise ValueError(f'num={num!r} must be a whole number of pictures, at least 1')
        if scale not in (1, 2, 4):
            raise ValueError(f'scale={scale!r} must be 1, 2 or 4')
        known = COLOURS | NEW_COLOURS
        if unknown := [name for name in colours if name not in known]:
            raise ValueError(f'colours has {unknown[0]!r}, not one of {", ".join(known)}')
        if held_out and len(set(colours)) < 2 and not set(colours) & set(NEW_COLOURS):
            # Of one colour, the digit that training never shows in it could not be drawn.
            raise ValueError(f'colours={tuple(colours)} must be two or more, a new one, or go with held_out=False')
        check_split(split)
        self.num, self.scale, self.split, self.held_out, self.seed = num, scale, split, held_out, seed
        self.colours = tuple(colours)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        images, labels = clear_digits(self.split)
        self._scans = [images[labels == value] for value in range(10)]
        described = map(str, (self.num, self.held_out, self.seed, *self.colours))
        # 4: scenes as they are drawn since one in five that is not square is a line.
        self.fingerprint = digest(['captioned digits 4', self.split, *described])
        return [{}] * self.num

    def shape_of(self, index: int) -> tuple[int, int]:
        """Height and width in pixels of picture ``index``."""
        height, width = draw_shape(self._rng(index))
        return height * self.scale, width * self.scale

    def scene(self, index: int) -> Scene:
        """What is in picture ``index``."""
        rng = self._rng(index)
        return draw_scene(rng, draw_shape(rng), self.held_out, self.colours)

    def captions(self, index: int) -> list[str]:
        """The caption of picture ``index``, in a list as other captioned datasets have it."""
        return [self.scene(index).caption]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        scene = self.scene(idx)
        # Which scan of each digit; another stream than that of the scene.
        rng = np.random.default_rng((self.seed, idx, 1))
        scans = [self._scans[digit.value][rng.integers(len(self._scans[digit.value]))] for digit in scene.digits]
        return dict(img=draw_digits(scene, scans, self.scale), text=scene.caption, sample_idx=idx)

    def describe(self, index: int) -> str:
        return f'picture {index} of digits'

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index))


def draw_digits(scene: Scene, scans: list[np.ndarray], scale: int = 1) -> np.ndarray:
    """Draw a scene: uint8 (H scale, W scale, 3).

    Args:
        scene: what to draw.
        scans: one for each digit, (8, 8) in [0, 16].
        scale: 1, 2 or 4.
    """
    height, width = scene.shape
    canvas = np.empty((height * scale, width * scale, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    palette = COLOURS | NEW_COLOURS
    for digit, scan in zip(scene.digits, scans, strict=True):
        top, left, side = (scale * length for length in digit.box)
        part = canvas[top : top + side, left : left + side]
        part += _cover(scan.astype(np.float32).tobytes(), side)[..., None] * (
            np.array(palette[digit.colour], np.float32) - part
        )
    return (canvas + 0.5).astype(np.uint8)


# A training draws the same strokes again and again. Room for every scan at both sides of a digit, 23 MB at scale 2.
@lru_cache(maxsize=4096)
def _cover(scan: bytes, side: int) -> np.ndarray:
    """How much of each pixel the strokes of a scan cover, (side, side) in [0, 1], at any side alike."""
    finest = side * max(1, _FINEST_SIDE // side)
    pixels = np.frombuffer(scan, np.float32).reshape(8, 8)
    smooth = Image.fromarray(pixels).resize((finest, finest), Image.Resampling.BICUBIC)
    # The scans' own soft edges; 13 of their 16 grey values cover a pixel wholly.
    cover = np.clip(np.asarray(smooth) * (1 / 13), 0, 1)
    step = finest // side
    cover = cover.reshape(side, step, side, step).mean((1, 3)) if step > 1 else cover
    cover.setflags(write=False)  # all callers share it
    return cover

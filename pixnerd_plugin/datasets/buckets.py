"""Pictures of several shapes: buckets of equal area, and batches of one shape in an order that resumes exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch.utils.data import Sampler

from pixnerd_plugin.registry import DATA_SAMPLERS

from .sampler import ResumableSampler
from .visits import Visit

# Share by which a bucket's area may differ from the square's: few whole patches do not divide evenly.
_TOLERANCE = 0.2


def make_buckets(resolution: int, max_aspect: float = 2.0, multiple: int = 16) -> list[tuple[int, int]]:
    """Shapes (height, width) in pixels of about ``resolution**2`` pixels, from the tallest to the widest.

    Args:
        resolution: side of the square among them.
        max_aspect: longest side over shortest, at least 1.
        multiple: every side is a multiple of this, the patch size (times ``max_density``, if that is above 1).

    Raises:
        ValueError: if an argument is out of range.
    """
    if multiple < 1 or resolution < multiple or resolution % multiple:
        raise ValueError(f'resolution={resolution} must be a multiple of the patch, multiple={multiple}')
    if not 1 <= max_aspect <= 100:
        raise ValueError(f'max_aspect={max_aspect} must be from 1 (squares alone) to 100')
    side = resolution // multiple
    found = set()
    for long in range(side, math.ceil(side * max_aspect) + 1):
        short = max(1, round(side**2 / long))
        if long <= max_aspect * short and abs(long * short / side**2 - 1) <= _TOLERANCE:
            found |= {(long, short), (short, long)}
    return [(h * multiple, w * multiple) for h, w in sorted(found, key=lambda shape: shape[1] / shape[0])]


def nearest_buckets(shapes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number of the bucket nearest in the logarithm of the aspect, (N,), for shapes (N, 2) of height and width."""
    aspects = np.log([width / height for height, width in buckets])
    borders = (aspects[1:] + aspects[:-1]) / 2
    numbers = np.empty(len(shapes), dtype=np.uint16)
    for start in range(0, len(shapes), 2**20):
        part = np.asarray(shapes[start : start + 2**20], dtype=np.float64)
        numbers[start : start + 2**20] = np.searchsorted(borders, np.log(part[:, 1] / part[:, 0]))
    return numbers


def merge_rare(numbers: np.ndarray, buckets: Sequence[tuple[int, int]], least: int) -> np.ndarray:
    """Give the pictures of buckets with fewer than ``least`` to the nearest bucket that has any."""
    numbers = numbers.copy()
    aspects = np.log([width / height for height, width in buckets])
    while True:
        counts = np.bincount(numbers, minlength=len(buckets))
        used = np.flatnonzero(counts)
        rarest = used[np.argmin(counts[used])]
        if len(used) == 1 or counts[rarest] >= least:
            return numbers
        others = used[used != rarest]
        numbers[numbers == rarest] = others[np.argmin(abs(aspects[others] - aspects[rarest]))]


@DATA_SAMPLERS.register_module()
class BucketBatchSampler(Sampler):
    """Batches of pictures that share a shape, for the ``batch_sampler`` of a data loader.

    It follows the visits of a `ResumableSampler` and gathers them by bucket; whenever a bucket has ``batch_size``, that
    is a batch. So every picture is visited once an epoch, none is dropped, and pictures that do not fill a batch wait
    for the next epoch. All ranks share one sequence of batches and take turns; it depends on the seed, the shapes and
    ``batch_size`` alone, not on the number of ranks. ``sampler.skip(visits)`` resumes it exactly: it goes on after
    ``visits / batch_size`` batches.

    The dataset gives the shape of each picture by ``shape_of(index) -> (height, width)``, without decoding it. Each
    visit carries the shape of its bucket, to which `ResizeCenterCrop`, `ADMCenterCrop` or `RandomCropResize` in the
    pipeline then bring the picture, whatever their own ``size``.

    Args:
        sampler: a `ResumableSampler`.
        batch_size: pictures in a batch.
        resolution: side in pixels of the square bucket; the others have about its area. None: the buckets are the
            shapes of the dataset, whose pictures stay as they are.
        max_aspect: longest side over shortest, of the buckets; more elongated pictures are cropped to these.
        multiple: see `make_buckets`.

    Attributes:
        buckets: their (height, width) in pixels, those with pictures only.
        resolution: side of a square of about the same area, in pixels.

    Raises:
        ValueError: if an argument is out of range, or the sampler or the dataset does not fit.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        resolution: int | None = None,
        max_aspect: float = 2.0,
        multiple: int = 16,
    ):
        if not isinstance(sampler, ResumableSampler):
            raise ValueError(
                f'BucketBatchSampler follows a ResumableSampler, not {type(sampler).__name__}; set '
                "train_dataloader.sampler=dict(type='ResumableSampler', shuffle=True, seed=0)"
            )
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size} must be at least 1')
        self.sampler, self.batch_size = sampler, batch_size
        shapes = read_shapes(sampler.dataset)
        if resolution is None:
            own, numbers = np.unique(shapes, axis=0, return_inverse=True)
            buckets = [(int(height), int(width)) for height, width in own]
            numbers = numbers.reshape(-1)
            side = next((h for h, w in buckets if h == w), round(math.sqrt(np.prod(own, axis=1).mean())))
        else:
            buckets, side = make_buckets(resolution, max_aspect, multiple), resolution
            numbers = merge_rare(nearest_buckets(shapes, buckets), buckets, batch_size)
            _log_buckets(numbers, buckets, shapes, max_aspect)
        used, numbers = np.unique(numbers, return_inverse=True)
        self.buckets = [buckets[number] for number in used]
        self._numbers = numbers.astype(np.min_scalar_type(len(used)))  # one or two bytes a picture, as a rule
        self.resolution = side
        self._counts = np.bincount(self._numbers)

    def __len__(self) -> int:
        """Batches in an epoch, of all ranks, rounded down but at least 1."""
        return max(1, len(self._numbers) // self.batch_size)

    def __iter__(self) -> Iterator[list[Visit]]:
        done = -(-self.sampler.start // self.batch_size)
        epoch = self._epoch_of(done)
        mine = done + self.sampler.rank
        for number, (bucket, visits, indices) in enumerate(self._batches(epoch), self._batches_before(epoch)):
            if number == mine:
                shape, seed = self.buckets[bucket], self.sampler.seed
                pairs = zip(visits.tolist(), indices.tolist(), strict=True)
                yield [Visit(index, (seed, visit), shape) for visit, index in pairs]
                mine += self.sampler.world_size

    def _batches_before(self, epoch: int) -> int:
        """Number of batches that are full within the first ``epoch`` epochs."""
        return int((epoch * self._counts // self.batch_size).sum())

    def _epoch_of(self, batch: int) -> int:
        """The epoch in which batch ``batch``, counted from 0, is full."""
        epoch = batch * self.batch_size // len(self._numbers)  # that, or a later one: pictures may still wait
        while self._batches_before(epoch + 1) <= batch:
            epoch += 1
        return epoch

    def _batches(self, epoch: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the batches that are full in ``epoch`` or later: bucket, visits (B,) and indices (B,)."""
        size, total = self.batch_size, len(self._numbers)
        # Which pictures wait at its start follows from the epochs before, as many as the smallest bucket needs.
        start = max(0, epoch - -(-(size - 1) // int(self._counts.min())))
        waiting = [np.full((2, start * count % size), -1) for count in self._counts.tolist()]
        for current in itertools.count(start):
            for begin, indices in self.sampler.blocks(current):
                pairs = np.stack((current * total + begin + np.arange(len(indices)), indices))
                numbers = self._numbers[indices]
                order = np.argsort(numbers, kind='stable')
                bounds = np.searchsorted(numbers[order], np.arange(len(waiting) + 1))
                full = []
                for bucket, (low, high) in enumerate(itertools.pairwise(bounds)):
                    gathered = np.concatenate((waiting[bucket], pairs[:, order[low:high]]), axis=1)
                    whole = gathered.shape[1] // size * size
                    waiting[bucket] = gathered[:, whole:]
                    batches = gathered[:, :whole].reshape(2, -1, size)
                    full += [(bucket, *batches[:, number]) for number in range(batches.shape[1])]
                if current >= epoch:
                    yield from sorted(full, key=lambda batch: int(batch[1][-1]))  # by the visit that filled it


def read_shapes(dataset: Any) -> np.ndarray:
    """Height and width of each picture, (N, 2): ``dataset.all_shapes()`` if it has that, else its ``shape_of`` of each.

    Raises:
        ValueError: if it has neither.
    """
    if hasattr(dataset, 'all_shapes'):
        return np.asarray(dataset.all_shapes())
    if not hasattr(dataset, 'shape_of'):
        raise ValueError(
            f'batches of one shape need the shape of each picture: give {type(dataset).__name__} a method '
            'shape_of(index) that returns (height, width)'
        )
    return np.array([dataset.shape_of(index) for index in range(len(dataset))])


def _log_buckets(
    numbers: np.ndarray, buckets: Sequence[tuple[int, int]], shapes: np.ndarray, max_aspect: float
) -> None:
    counts = np.bincount(numbers, minlength=len(buckets))
    each = ', '.join(f'{h}x{w}: {n:,}' for (h, w), n in zip(buckets, counts.tolist(), strict=True) if n)
    elongated = int((np.max(shapes, axis=1) > max_aspect * np.min(shapes, axis=1)).sum())
    cropped = f'; {elongated:,} are more elongated than max_aspect={max_aspect:g}, and cropped' if elongated else ''
    print_log(f'Pictures in each bucket (height x width): {each}{cropped}', logger='current')

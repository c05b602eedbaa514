"""The base of all datasets of pictures: pipelines, reproducible visits, and damaged pictures."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from pixnerd_plugin.registry import TRANSFORMS, build

from .decode import picture_shape
from .faults import DamagedImage, Tally, TooManyDamaged
from .visits import seeded

# With fewer visits the share of damaged pictures says little: several in a row may be chance.
_MIN_VISITS_JUDGED = 10_000


class ImageDataset(BaseDataset):
    """mmengine's ``BaseDataset`` with reproducible visits, which skips damaged pictures.

    Indexed with a `Visit`, as by `ResumableSampler`, transforms draw from generators seeded by that visit alone.
    Indexed with a plain int, they draw from the global generators.

    If the pipeline raises `DamagedImage` or returns None for a picture, that picture is named in the log once,
    counted (`num_damaged`), and replaced by another, whose index depends only on the visit and the damaged index.

    Args:
        pipeline: transforms, built or as dicts for the `TRANSFORMS` registry (mmcv's included).
        max_damaged: maximum share, in [0, 1], of damaged pictures among those seen so far, counted over all workers of
            this rank, each picture once. Above it, `TooManyDamaged` is raised. 0 allows none.
        tolerated_damaged: so many damaged pictures end no run, however few there are to see (unless it is all of them).
        kwargs: mmengine's `BaseDataset` arguments.
    """

    fingerprint: str
    """Identifies the list of samples, not their content; it does not depend on where the data is."""

    def __init__(
        self, pipeline: Sequence[Any] = (), max_damaged: float = 0.01, tolerated_damaged: int = 10, **kwargs: Any
    ):
        if not 0 <= max_damaged <= 1:
            raise ValueError(f'max_damaged={max_damaged} must be a share in [0, 1]')
        if tolerated_damaged < 0:
            raise ValueError(f'tolerated_damaged={tolerated_damaged} must be at least 0')
        self.max_damaged = max_damaged
        self.tolerated_damaged = tolerated_damaged if max_damaged else 0
        # Built here, because mmengine's Compose uses the default scope, which only a Runner sets.
        super().__init__(pipeline=[build(TRANSFORMS, step) for step in pipeline], **kwargs)

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        super().full_init()
        self._damaged = Tally(len(self))
        self._visits = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def num_damaged(self) -> int:
        """Number of different pictures that the workers of this rank found damaged so far."""
        return len(self._damaged)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.full_init()
        entropy = getattr(index, 'entropy', ())
        with seeded(entropy) if entropy else nullcontext():
            return self._visit(int(index), entropy, getattr(index, 'shape', None))

    def _visit(self, index: int, entropy: tuple[int, ...], shape: tuple[int, int] | None) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} is outside a dataset of {len(self)} pictures')
        index %= len(self)
        replacements = None
        while True:
            self._visits += 1
            try:
                info = self.get_data_info(index)
                if shape is not None:
                    info['bucket'] = shape  # that of the batch, also for a picture that replaces a damaged one
                sample = self.pipeline(info)
                if sample is None:
                    raise DamagedImage('the pipeline returned None')
                return sample
            except DamagedImage as fault:
                self._report_damaged(index, fault)
            replacements = replacements or np.random.default_rng((*entropy, index))
            index = int(replacements.integers(len(self)))

    def _report_damaged(self, index: int, fault: DamagedImage) -> None:
        if self._damaged.add(index):
            log_fault(f'damaged picture skipped: {self.describe(index)}: {fault}')
        seen = min(len(self), max(int(self._visits), _MIN_VISITS_JUDGED))
        allowed = max(self.max_damaged * seen, self.tolerated_damaged)
        if self.num_damaged > allowed or self.num_damaged == len(self):
            raise TooManyDamaged(
                f'{self.num_damaged} damaged pictures among {seen}, more than max_damaged={self.max_damaged} allows; '
                f'the last is {self.describe(index)} ({fault}); repair or remove the files named in the log'
            )

    def shape_of(self, index: int) -> tuple[int, int]:
        """Height and width in pixels of the original of sample `index`, as displayed; only its header is read.

        Raises:
            DamagedImage: if it has no readable header.
        """
        info = super().get_data_info(index)  # a subclass would read the caption too
        if 'img' in info:
            height, width = info['img'].shape[:2]
            return height, width
        return picture_shape(info['img_path'])

    def all_shapes(self) -> np.ndarray:
        """`shape_of` every sample, (N, 2); a picture without a readable header counts as a square."""
        self.full_init()

        def read(start: int) -> list[tuple[int, int]]:
            return [self._shape_or_square(index) for index in range(start, min(start + 256, len(self)))]

        # In threads, because reading headers from a network file system is mostly waiting.
        with ThreadPoolExecutor(max_workers=16) as pool:
            return np.array([shape for part in pool.map(read, range(0, len(self), 256)) for shape in part])

    def _shape_or_square(self, index: int) -> tuple[int, int]:
        try:
            return self.shape_of(index)
        except DamagedImage:
            return 1, 1  # the visit will name it

    def describe(self, index: int) -> str:
        """A name of sample `index` for messages."""
        return str(self.get_data_info(index).get('img_path', f'sample {index}'))


def log_fault(message: str) -> None:
    """Log a fault of the data from any rank or worker."""
    message = message.encode('utf-8', 'backslashreplace').decode()  # file names need not be UTF-8
    rank = int(os.environ.get('RANK', 0))
    if rank == 0:
        print_log(message, logger='current', level=logging.WARNING)
    else:
        # Below ERROR, mmengine's logger drops what other ranks say; above, it names its own source file before each.
        print(f'[rank {rank}] {message}', file=sys.stderr, flush=True)


def digest(parts: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that identify `parts` and their order."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode('utf-8', 'surrogateescape') + b'\0')
    return sha.hexdigest()[:16]

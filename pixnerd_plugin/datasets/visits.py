"""Visits: which one a sample belongs to, and randomness that depends on nothing else.

A training run is an endless sequence of visits, numbered from 0 over all ranks. The sampler sends the dataset a
`Visit`: the index of a sample and the entropy of this visit. Whatever the transforms draw then depends on the visit
alone, not on the worker, the rank or the last restart. So a resumed run draws the same as an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Visit(int):
    """An index into a dataset, usable like an int, that carries the visit's `entropy` (a tuple of ints ≥ 0).

    In batches of one shape it also carries that `shape`, (height, width), to which the picture is to be brought.
    """

    entropy: tuple[int, ...]
    shape: tuple[int, int] | None

    def __new__(cls, index: int, entropy: tuple[int, ...], shape: tuple[int, int] | None = None) -> Visit:
        visit = super().__new__(cls, index)
        visit.entropy, visit.shape = entropy, shape
        return visit

    def __getnewargs__(self) -> tuple[int, tuple[int, ...], tuple[int, int] | None]:  # type: ignore[override]
        return int(self), self.entropy, self.shape


@contextmanager
def seeded(entropy: tuple[int, ...]) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global CPU generators from `entropy`, and restore them on exit.

    mmcv's transforms draw from numpy's global generator, which without workers is also the training loop's.
    """
    # torch.manual_seed would also reseed the GPUs, whose streams belong to the model.
    generator = torch.default_generator
    states = random.getstate(), np.random.get_state(), generator.get_state()
    words = np.random.SeedSequence(entropy).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        generator.set_state(states[2])

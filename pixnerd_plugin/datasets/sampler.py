"""An endless, distributed sampler that can start anywhere immediately."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from pixnerd_plugin.registry import DATA_SAMPLERS

from .visits import Visit


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Visit the dataset again and again, in an order that depends on `seed` alone.

    All ranks share one sequence of visits. Visit v is in epoch ``v // len(dataset)``, each epoch has its own order, and
    no sample is dropped or repeated if an epoch ends within a batch. Ranks take turns: the r-th of W ranks makes visits
    ``start + r, start + r + W, ...``. So the sequence does not depend on the number of ranks, and after k batches of B
    on W ranks, visits 0 to k·B·W - 1 are done.

    To resume there, call ``skip(k * B * W)`` before the loader's iterator is made; this reads and replays nothing. The
    sampler does not count visits itself, because with workers it runs ahead of training.

    It yields `Visit`s, which also seed the transforms. It never ends, so use it with iteration-based training.

    Args:
        dataset: anything with a length. `shards_per_block` also needs its ``shard_sizes``, the number of samples in
            each shard; samples are numbered shard by shard.
        seed: the same on all ranks; None, which mmengine passes under ``diff_rank_seed``, means 0.
        shuffle: if False, visit in the order of the dataset.
        shards_per_block: if None, shuffle the whole dataset (8 bytes of memory a sample). Otherwise shuffle the shards,
            and then the samples within each block of this many shards: only these shards are read at a time, and only
            their order is in memory.

    Raises:
        ValueError: if the dataset is empty, or an argument is out of range.
    """

    def __init__(self, dataset: Sized, seed: int | None = 0, shuffle: bool = True, shards_per_block: int | None = None):
        self.dataset = dataset
        self.seed = 0 if seed is None else seed
        self.shuffle = shuffle
        self.rank, self.world_size = get_dist_info()
        self.start = 0
        if self.seed < 0:
            raise ValueError(f'seed={seed} must be at least 0')
        if len(dataset) == 0:
            raise ValueError('the dataset is empty: there is nothing to sample')
        if shards_per_block is None:
            self._sizes, self._shards_per_block = np.array([len(dataset)]), 1
        elif shards_per_block < 1:
            raise ValueError(f'shards_per_block={shards_per_block} must be at least 1, or None')
        elif not hasattr(dataset, 'shard_sizes'):
            raise ValueError(f'shards_per_block needs a dataset of shards; {type(dataset).__name__} has no shard_sizes')
        else:
            self._sizes, self._shards_per_block = np.asarray(dataset.shard_sizes), shards_per_block
        self._starts = np.cumsum(self._sizes) - self._sizes

    def skip(self, num_visits: int) -> None:
        """Start the next iterator after `num_visits` visits, counted over all ranks from the start of the run."""
        if num_visits < 0:
            raise ValueError(f'num_visits={num_visits} must be at least 0')
        self.start = num_visits

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Visit]:
        block_epoch, begin, block = -1, 0, np.empty(0, dtype=np.int64)
        for visit in itertools.count(self.start + self.rank, self.world_size):
            epoch, offset = divmod(visit, len(self))
            if epoch != block_epoch or not begin <= offset < begin + len(block):
                block_epoch = epoch
                begin, block = self._block(epoch, offset)
            yield Visit(int(block[offset - begin]), (self.seed, visit))

    def blocks(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield an epoch's blocks in order: the offset in the epoch where each begins, and its indices in order."""
        offset = 0
        while offset < len(self):
            begin, indices = self._block(epoch, offset)
            yield begin, indices
            offset = begin + len(indices)

    def _block(self, epoch: int, offset: int) -> tuple[int, np.ndarray]:
        """Return the block that contains `offset` of an epoch: the offset where it begins, and its indices in order."""
        shards = np.arange(len(self._sizes))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(shards)
        ends = np.cumsum(self._sizes[shards])
        first = int(np.searchsorted(ends, offset, side='right')) // self._shards_per_block * self._shards_per_block
        members = shards[first : first + self._shards_per_block]
        indices = np.concatenate([np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in members])
        if self.shuffle:
            # + 1, because numpy treats (seed, epoch) and (seed, epoch, 0) as the same seed.
            np.random.default_rng((self.seed, epoch, first + 1)).shuffle(indices)
        return int(ends[first] - self._sizes[shards[first]]), indices

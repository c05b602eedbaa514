"""The training loop: a resumed run goes on at once, and exactly as if it had never stopped."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank, get_world_size
from mmengine.runner import BaseLoop

from pixnerd_plugin.registry import LOOPS


def seed_everything(*entropy: int) -> None:
    """Seed Python, numpy and torch (every device) from a mix of numbers; nearby numbers give unrelated streams."""
    python, numpy, low, high = (int(word) for word in np.random.SeedSequence(entropy).generate_state(4))
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(high << 32 | low)


@LOOPS.register_module()
class ResumableTrainLoop(BaseLoop):
    """mmengine's ``IterBasedTrainLoop`` with two differences, which together make resuming exact.

    The data sampler is told how many samples were seen, instead of reading them all again; and every iteration draws
    from generators seeded with (seed, rank, iteration), so that time and noise differ on every rank and do not depend
    on what happened before.

    Args:
        max_iters: iterations to train for; with gradient accumulation, several make an optimiser step.
        val_begin, val_interval: first iteration after which to validate, and how often.
    """

    def __init__(self, runner: Any, dataloader: Any, max_iters: int, val_begin: int = 1, val_interval: int = 1000):
        super().__init__(runner, dataloader)
        if max_iters < 1:
            raise ValueError(f'train_cfg.max_iters must be at least 1, got {max_iters}')
        self.max_iters = int(max_iters)
        self.max_epochs = 1
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        # Runner.resume sets these two by their names in mmengine's own loops.
        self._epoch = 0
        self._iter = 0
        runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def iter(self) -> int:
        return self._iter

    def run(self) -> torch.nn.Module:
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        self._skip_seen_data()
        seed = [runner.seed]
        # With diff_rank_seed, mmengine has added the rank to the seed; all ranks mix theirs into rank 0's instead.
        broadcast_object_list(seed)
        batches = iter(self.dataloader)
        while self._iter < self.max_iters and not self.stop_training:
            runner.model.train()
            batch = self._next(batches)
            # After the batch: a loader without workers may draw from this process's generators, one with them does not.
            seed_everything(seed[0], get_rank(), self._iter)
            self.run_iter(batch)
            if self._is_time_to_validate():
                runner.val_loop.run()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def run_iter(self, batch: Any) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=batch)
        outputs = self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)
        self.runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=batch, outputs=outputs)
        self._iter += 1

    def _skip_seen_data(self) -> None:
        if self._iter == 0:
            return
        batches = self.dataloader.batch_sampler
        if not hasattr(batches.sampler, 'skip'):
            raise ValueError(
                f'cannot resume at iteration {self._iter}: {type(batches.sampler).__name__} cannot skip the data '
                "already seen; set train_dataloader.sampler=dict(type='ResumableSampler', shuffle=True, seed=0)"
            )
        batches.sampler.skip(self._iter * batches.batch_size * get_world_size())

    def _next(self, batches: Any) -> Any:
        try:
            return next(batches)
        except StopIteration:
            raise ValueError(
                f'the data ended at iteration {self._iter} of {self.max_iters}; this loop needs an endless sampler: '
                "train_dataloader.sampler=dict(type='ResumableSampler', shuffle=True, seed=0)"
            ) from None

    def _is_time_to_validate(self) -> bool:
        due = self._iter % self.val_interval == 0 or self._iter == self.max_iters
        return self.runner.val_loop is not None and self._iter >= self.val_begin and due

"""The training loop: a resumed run continues immediately, and exactly as if it had never stopped."""

from __future__ import annotations

import random
import signal
from collections import deque
from pathlib import Path
from pickle import PicklingError
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop

from pixnerd_plugin.formats.torch_writer import save_torch
from pixnerd_plugin.registry import LOOPS

from .logs import is_validated
from .plain import plain
from .preemption import Preemption, busy, step_ended
from .workers import BROKEN, prepare_workers, worker_died

_MAX_WORKER_RESTARTS = 3


def seed_everything(*entropy: int) -> None:
    """Seed Python, numpy and torch (all devices) from several numbers; nearby numbers give unrelated streams."""
    python, numpy, low, high = (int(word) for word in np.random.SeedSequence(entropy).generate_state(4))
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(high << 32 | low)


@LOOPS.register_module()
class ResumableTrainLoop(BaseLoop):
    """mmengine's ``IterBasedTrainLoop``, made for runs of weeks.

    Resuming is exact. The data sampler skips the samples already seen without reading them. Every iteration draws from
    generators seeded with (seed, rank, iteration), so times and noise differ on every rank and do not depend on what
    happened before.

    On SIGTERM the loop finishes the current step, saves a checkpoint, and ends with ``preempted`` set. Data workers
    that die are started again; memory may run out, or Slurm send them SIGTERM too. If training stops because steps are
    no longer finite, the last batches are saved for study.

    Args:
        max_iters: iterations to train for; with gradient accumulation, an optimiser step takes several.
        val_interval: iterations between validations, if the config has a ``val_cfg``; one follows the last iteration.
    """

    def __init__(self, runner: Any, dataloader: Any, max_iters: int, val_interval: int | None = None):
        super().__init__(runner, dataloader)
        if max_iters < 1:
            raise ValueError(f'train_cfg.max_iters must be at least 1, got {max_iters}')
        if val_interval is not None and val_interval < 1:
            raise ValueError(f'train_cfg.val_interval must be at least 1, got {val_interval}')
        self.max_iters = int(max_iters)
        self.val_interval = val_interval
        self.max_epochs = 1
        self.stop_training = False
        self.preempted = False
        # Runner.resume sets these two under the names they have in mmengine's own loops.
        self._epoch = 0
        self._iter = 0
        self._known_visits = (0, 0)
        self._recent: deque[tuple[int, Any]] = deque(maxlen=2)
        prepare_workers(self.dataloader)
        runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.training_side = getattr(self.dataloader.batch_sampler, 'resolution', None)  # of BucketBatchSampler

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def iter(self) -> int:
        return self._iter

    def visits_after(self, iteration: int) -> int:
        """Number of samples that all ranks together have seen after ``iteration`` iterations."""
        known, visits = self._known_visits
        return visits + (iteration - known) * self.dataloader.batch_sampler.batch_size * get_world_size()

    def resume_visits(self, iteration: int, visits: int) -> None:
        """Continue after ``visits`` samples, whatever batch size and number of ranks saw them."""
        self._known_visits = (iteration, visits)

    def run(self) -> torch.nn.Module:
        runner = self.runner
        if self._iter >= self.max_iters:
            if self._last_validation_is_missing():
                runner.call_hook('before_train')
                self._validate()
                runner.call_hook('after_train')
            runner.logger.warning(
                f'This run is finished: {self._iter} of {self.max_iters} iterations are done. To train on, raise '
                'train_cfg.max_iters and resume with --reset-schedule.'
            )
            return runner.model
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        seed = [runner.seed]
        # With diff_rank_seed, mmengine adds the rank to the seed. Take rank 0's; seed_everything mixes in the rank.
        broadcast_object_list(seed)
        self._start_loading()
        with Preemption() as preemption:
            while self._iter < self.max_iters and not self.stop_training:
                # Only between optimiser steps: checkpoints do not hold half-accumulated gradients.
                if runner.optim_wrapper.should_update() and preemption.agreed():
                    self._save_and_stop()
                    break
                self._validate()
                runner.model.train()
                runner.call_hook('before_load')
                batch = self._next()
                # After loading: a loader without workers may draw from this process's generators.
                seed_everything(seed[0], get_rank(), self._iter)
                self.run_iter(batch)
        if not self.preempted:
            self._validate()
        self.dataloader._iterator = None
        del self._batches  # ends the workers
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _last_validation_is_missing(self) -> bool:
        """Whether a run that has all its iterations was killed before it logged its last validation."""
        if self.runner.val_loop is None:
            return False
        missing = [is_main_process() and not is_validated(self.runner.work_dir, self._iter)]
        broadcast_object_list(missing)
        return missing[0]

    def _validate(self) -> None:
        """Validate if it is due: between iterations, so that a run that resumes here does so too."""
        due = self.val_interval and self._iter % self.val_interval == 0
        if self.runner.val_loop is not None and self._iter > 0 and (due or self._iter >= self.max_iters):
            with busy():
                self.runner.val_loop.run()

    def run_iter(self, batch: Any) -> None:
        self._recent.append((self._iter, batch))
        try:
            self.runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=batch)
            outputs = self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)
            self.runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=batch, outputs=outputs)
        except FloatingPointError as error:
            raise FloatingPointError(f'{error}; {self._save_recent_batches()}') from None
        self._iter += 1
        step_ended()

    def _start_loading(self) -> None:
        """Start the loader at the sample where training continues.

        Raises:
            ValueError: if training continues and the sampler cannot skip samples.
        """
        batches = self.dataloader.batch_sampler
        if self._iter > 0 and not hasattr(batches.sampler, 'skip'):
            raise ValueError(
                f'cannot resume at iteration {self._iter}: {type(batches.sampler).__name__} cannot skip the data '
                "already seen; set train_dataloader.sampler=dict(type='ResumableSampler', shuffle=True, seed=0)"
            )
        if hasattr(batches.sampler, 'skip'):
            batches.sampler.skip(self.visits_after(self._iter))
        # With persistent workers the loader would hand out its old iterator again.
        self.dataloader._iterator = None
        try:
            self._batches = iter(self.dataloader)
        except (PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f'data workers cannot start: {error}; a dataset or transform of your own must be one that pickle takes '
                '(no lambdas, no classes inside functions), or set train_dataloader.num_workers=0'
            ) from error
        if self.dataloader.num_workers > 0 and hasattr(signal, 'SIGCHLD'):
            # torch's handler raises the death of a worker at any point, even in the middle of a step. Without it, the
            # next request for data raises.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _next(self) -> Any:
        for restarts in range(_MAX_WORKER_RESTARTS + 1):
            try:
                return next(self._batches)
            except StopIteration:
                raise ValueError(
                    f'the data ended at iteration {self._iter} of {self.max_iters}; this loop needs an endless sampler:'
                    " train_dataloader.sampler=dict(type='ResumableSampler', shuffle=True, seed=0)"
                ) from None
            except BROKEN as error:
                if not worker_died(self._batches, error):
                    raise
                self.runner.logger.error(f'DATA WORKER DIED at iteration {self._iter}: {error or type(error).__name__}')
                if restarts < _MAX_WORKER_RESTARTS:
                    self._start_loading()
        raise ValueError(
            f'data workers died {_MAX_WORKER_RESTARTS + 1} times in a row at iteration {self._iter}; when memory is '
            'short, lower train_dataloader.num_workers or batch_size'
        )

    def _save_and_stop(self) -> None:
        self.runner.logger.warning(f'Asked to stop (SIGTERM): saving at iteration {self._iter}; --resume continues.')
        self.runner.call_hook('flush')
        self.runner.call_hook('save_now')
        self.preempted = True

    def _save_recent_batches(self) -> str:
        """Write the last batches of this rank beside the checkpoints; return a message for the user."""
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        per_image = getattr(model.loss, 'per_image', {})
        path = Path(self.runner.work_dir) / f'nonfinite_iter_{self._iter + 1}_rank_{get_rank()}.pth'
        recent = [dict(iteration=iteration, batch=batch) for iteration, batch in self._recent]
        save_torch(path, plain(dict(recent=recent, rank=get_rank(), per_image=per_image)))
        broken = [
            f'{name} of {count}' for name, terms in per_image.items() if (count := int((~terms.isfinite()).sum()))
        ]
        return f'the last batches are in {path}' + (f', not finite: {", ".join(broken)} pictures' if broken else '')

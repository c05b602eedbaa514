"""Checkpoints that are complete or absent, load with ``weights_only=True``, and do not grow with the run."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmengine.runner.checkpoint
import mmengine.runner.runner
import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper

from pixnerd_plugin.checkpoints.load import METADATA_KEY
from pixnerd_plugin.engine.plain import plain
from pixnerd_plugin.engine.preemption import busy
from pixnerd_plugin.formats.atomic import atomic_path, remove_leftovers
from pixnerd_plugin.formats.torch_writer import save_torch
from pixnerd_plugin.registry import HOOKS

BACKEND = 'pixnerd.atomic'


@register_backend(BACKEND)
class AtomicLocalBackend(LocalBackend):
    """mmengine's local storage whose writes are atomic."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with atomic_path(filepath) as temporary:
            temporary.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


@contextmanager
def streamed(write: Callable[[Path, Any], Any] = save_torch) -> Iterator[None]:
    """Have mmengine's Runner write a checkpoint straight to the disk; its own function makes two copies in memory."""
    original = mmengine.runner.runner.save_checkpoint
    mmengine.runner.runner.save_checkpoint = lambda checkpoint, filename, **_: write(Path(filename), checkpoint)
    try:
        yield
    finally:
        mmengine.runner.runner.save_checkpoint = original


class _Size(io.BytesIO):
    """A file that counts what is written to it, and keeps nothing."""

    total = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.total += size
        return size


@contextmanager
def _no_file_client() -> Iterator[None]:
    """Keep mmengine's ``save_checkpoint`` from making a ``FileClient``, which it does not use and warns about."""
    original = mmengine.runner.checkpoint.FileClient
    mmengine.runner.checkpoint.FileClient = SimpleNamespace(infer_client=lambda *args: None)
    try:
        yield
    finally:
        mmengine.runner.checkpoint.FileClient = original


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, made to survive a kill at any moment and a full disk.

    A new checkpoint is complete on the disk before ``last_checkpoint`` names it and before an old one is deleted. It is
    written tensor by tensor: saving takes no memory beside the state, or its copy from a GPU. The message hub is stored
    as plain Python; stock mmengine resumes all of it except the smoothing of its logs.
    ``meta['pixnerd']`` is the model's description, for ``load_backbone`` and ``tools/sample.py``.

    Args:
        interval: iterations (epochs with ``by_epoch``) between checkpoints. Where gradients accumulate, the end of the
            optimiser's step is waited for: a checkpoint does not hold half of one.
        max_keep_ckpts: number of latest checkpoints to keep; -1 keeps all.
        keep_every: also keep those whose interval ends at a multiple of this; 0 for none.
        log_history: number of values of each logged scalar to keep, in memory and in the checkpoint.
        out_dir: folder to save below, in one named like the work folder; by default the work folder itself.
        save_optimizer, save_param_scheduler, save_last, save_begin, filename_tmpl, backend_args: as for mmengine's
            ``CheckpointHook``.
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = False,
        max_keep_ckpts: int = 3,
        keep_every: int = 0,
        log_history: int = 1000,
        out_dir: str | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        save_last: bool = True,
        save_begin: int = 0,
        filename_tmpl: str | None = None,
        backend_args: dict[str, Any] | None = None,
    ):
        super().__init__(
            interval,
            by_epoch,
            save_optimizer,
            save_param_scheduler,
            out_dir,
            max_keep_ckpts,
            save_last,
            filename_tmpl=filename_tmpl,
            backend_args=backend_args or dict(backend=BACKEND),
            save_begin=save_begin,
        )
        self.keep_every = keep_every
        self.log_history = log_history

    def before_train(self, runner: Any) -> None:
        # Not mmengine's own, which asks its FileClient for what nothing here reads and warns that it is deprecated.
        self.file_backend = get_file_backend(backend_args=self.backend_args)
        folder = self.out_dir or runner.work_dir
        if folder != runner.work_dir:
            folder = self.file_backend.join_path(folder, os.path.basename(os.path.abspath(runner.work_dir)))
        self.out_dir: str = folder
        runner.logger.info(f'Checkpoints will be saved to {self.out_dir}.')
        if is_main_process() and os.path.isdir(self.out_dir):
            remove_leftovers(self.out_dir)
            # Gone back to an earlier one, the run is this one from now on, also if it is killed before it saves.
            if runner._resume and Path(runner._load_from).resolve().parent == Path(self.out_dir).resolve():
                self._point_to(runner, runner._load_from)
        # Otherwise mmengine warns at every checkpoint that there is no scheduler to save.
        if runner.param_schedulers is None:
            self.save_param_scheduler = False

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.by_epoch or not runner.optim_wrapper.should_update():
            return
        done, counts = runner.iter + 1, self._counts(runner)
        since, step = done - self.save_begin, done % counts or counts  # iterations of the optimiser's step
        due = self.interval > 0 and since >= 0 and since // self.interval > (since - step) // self.interval
        if due or (self.save_last and self.is_last_train_iter(runner)):
            runner.logger.info(f'Saving checkpoint at {done} iterations')
            runner.call_hook('flush')
            self._save_checkpoint(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._forget_old_scalars(runner.message_hub)
        checkpoint['message_hub'] = self._plain_message_hub(runner)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if hasattr(model, 'description'):
            checkpoint['meta'][METADATA_KEY] = model.description()
        for key in ('meta', 'param_schedulers'):
            if key in checkpoint:
                checkpoint[key] = plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        hub = checkpoint.get('message_hub', {})
        for key, (values, counts) in hub.pop('log_history', {}).items():
            hub['log_scalars'][key] = HistoryBuffer(values, counts, self.log_history)
            hub['resumed_keys'][key] = True

    def save_now(self, runner: Any) -> None:
        """Save between two iterations, outside the schedule; the loop calls this when it is asked to stop."""
        name = self.filename_tmpl.format(runner.iter)
        if self.last_ckpt is None or os.path.basename(self.last_ckpt) != name:
            self._save_checkpoint_with_step(runner, runner.iter, meta=dict(epoch=runner.epoch, iter=runner.iter))

    def measure(self, runner: Any) -> int:
        """Size of a checkpoint in bytes, on rank 0: everything of a save happens but the writing; elsewhere 0."""
        size = _Size()
        with streamed(lambda path, checkpoint: torch.save(checkpoint, size)):
            self._call_runner(runner, 'measured.pth', dict(epoch=runner.epoch, iter=runner.iter))
        return size.total

    def _call_runner(self, runner: Any, name: str, meta: dict[str, Any]) -> None:
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
        )

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        try:
            with busy(), streamed() if self.backend_args == dict(backend=BACKEND) else _no_file_client():
                self._call_runner(runner, name, meta)
            if is_main_process():
                self._point_to(runner, path)
        except OSError as error:
            if self.is_last_train_iter(runner):
                raise
            runner.logger.error(f'CHECKPOINT NOT SAVED: {path}: {error}. Training continues; old checkpoints are kept.')
            return
        self.last_ckpt = path
        if is_main_process() and self.max_keep_ckpts > 0:
            self._delete_old(step, self._counts(runner))

    def _point_to(self, runner: Any, path: str) -> None:
        self.file_backend.put_text(path, self.file_backend.join_path(runner.work_dir, 'last_checkpoint'))

    @staticmethod
    def _counts(runner: Any) -> int:
        """Iterations of an optimiser's step."""
        return getattr(runner.optim_wrapper, '_accumulative_counts', 1)

    def _delete_old(self, newest: int, counts: int) -> None:
        pattern = re.compile(re.escape(self.filename_tmpl).replace(r'\{\}', r'(\d+)'))
        names = self.file_backend.list_dir_or_file(self.out_dir, list_dir=False)
        steps = sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))
        # Later checkpoints belong to another run in this folder, and must not count.
        for step in [step for step in steps if step <= newest][: -self.max_keep_ckpts]:
            if not (self.keep_every and step % self.keep_every < counts):
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))

    def _forget_old_scalars(self, hub: Any) -> None:
        for key, buffer in hub.log_scalars.items():
            values, counts = (array[-self.log_history :] for array in buffer.data)
            hub.log_scalars[key] = HistoryBuffer(values, counts, self.log_history)

    def _plain_message_hub(self, runner: Any) -> dict[str, Any]:
        state = runner.message_hub.state_dict()
        info = {}
        for key, value in state['runtime_info'].items():
            try:
                info[key] = plain(value)
            except TypeError as error:
                runner.logger.warning(f'message hub entry {key!r} is left out of the checkpoint: {error}')
        return dict(
            # HistoryBuffer does not load with weights_only, so this entry of stock mmengine stays empty.
            log_scalars={},
            log_history={key: tuple(map(plain, buffer.data)) for key, buffer in state['log_scalars'].items()},
            runtime_info=info,
            resumed_keys={key: value for key, value in state['resumed_keys'].items() if key in info},
        )

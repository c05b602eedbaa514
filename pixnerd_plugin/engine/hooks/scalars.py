"""Scalars that stay on the device until they are logged, and logs without gaps or repeats after restarts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, LoggerHook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from torch import Tensor

from pixnerd_plugin.engine.logs import set_aside_after
from pixnerd_plugin.registry import HOOKS

BY_TIME = 'by_time'


@HOOKS.register_module()
class ScalarsHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` without a synchronisation for every scalar and step.

    Losses stay on the device. They are averaged over the ranks and fetched together when they are logged or saved; in
    between, the message hub is up to ``LoggerHook.interval`` iterations old.

    Args:
        time_bins: also log each loss term in this many bins of t, named by the middle of the bin, such as
            ``loss_flow_by_time/0.05``; 0 for none. The loss must have ``per_image``, as ``FlowMatchREPALoss`` has.

    Raises:
        ValueError: if ``time_bins`` is negative.
    """

    def __init__(self, time_bins: int = 10):
        if time_bins < 0:
            raise ValueError(f'ScalarsHook: time_bins must be at least 0, got {time_bins}')
        self.time_bins = time_bins
        self._names: list[str] = []
        self._terms: list[str] = []
        self._rows: list[Tensor] = []
        self._next_cut = 1

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        saves = [hook.interval for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        self._due = [interval for interval in intervals + saves if interval > 0]
        if runner._resume and is_main_process():
            set_aside_after(runner.work_dir, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._names = list(outputs)
        row = [torch.stack([value.detach().float().mean() for value in outputs.values()])]
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        per_image = getattr(getattr(model, 'loss', None), 'per_image', {})
        if self.time_bins and 't' in per_image:
            self._terms = [name for name in per_image if name != 't']
            bins = torch.arange(self.time_bins, device=per_image['t'].device)
            members = ((per_image['t'] * self.time_bins).long().clamp(0, self.time_bins - 1)[:, None] == bins).float()
            row += [members.sum(0), *(per_image[name].float() @ members for name in self._terms)]
        self._rows.append(torch.cat(row))
        done = runner.iter + 1
        self._report_cut(runner, getattr(model, 'conditioner', None))
        if any(done % interval == 0 for interval in self._due) or done == runner.max_iters:
            self.flush(runner)

    def _report_cut(self, runner: Any, conditioner: Any) -> None:
        """Say how many prompts were longer than the text encoder takes, whenever there are ten times as many."""
        cut = getattr(conditioner, 'num_cut', 0)
        if cut >= self._next_cut:
            self._next_cut = 10 * cut
            runner.logger.warning(
                f'{cut} prompts so far were longer than max_length={conditioner.max_length} tokens and were cut; the '
                f'first begins {conditioner.first_cut!r}'
            )

    def flush(self, runner: Any) -> None:
        """Move the scalars of all iterations so far to the message hub; all ranks must call it together."""
        if hasattr(runner.optim_wrapper, 'settle'):
            runner.optim_wrapper.settle()
        if not self._rows:
            return
        rows = torch.stack(self._rows)
        self._rows.clear()
        ranks = get_world_size()
        if ranks > 1:
            dist.all_reduce(rows)
        hub, count = runner.message_hub, len(self._names)
        for row in rows.tolist():
            for name, total in zip(self._names, row, strict=False):
                hub.update_scalar(f'train/{name}', total / ranks)
            if not self._terms:
                continue
            members, *sums = [row[i : i + self.time_bins] for i in range(count, len(row), self.time_bins)]
            for name, terms in zip(self._terms, sums, strict=True):
                for index, (total, number) in enumerate(zip(terms, members, strict=True)):
                    middle = (index + 0.5) / self.time_bins
                    hub.update_scalar(f'{BY_TIME}/{name}_by_time/{middle:.3g}', total, int(number))

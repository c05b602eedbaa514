"""Optimiser wrappers: steps that survive a non-finite gradient, and bf16 autocast over float32 weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn

from pixnerd_plugin.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class FiniteOptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` that leaves out a step whose gradient is not finite, and logs the gradient norm.

    Under DDP every rank sees the same averaged gradient, so all of them leave out the same step.

    Args:
        max_skipped: how many steps in a row may be left out before training stops with ``FloatingPointError``.
        kwargs: as for mmengine's ``OptimWrapper`` (``optimizer``, ``accumulative_counts``, ``clip_grad``).
    """

    def __init__(self, *args: Any, max_skipped: int = 10, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.max_skipped = max_skipped
        self.skipped_in_a_row = 0

    @property
    def last_step_skipped(self) -> bool:
        return self.skipped_in_a_row > 0

    def step(self, **kwargs: Any) -> None:
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            self._skip(norm)
            return
        self.skipped_in_a_row = 0
        self.message_hub.update_scalar('train/grad_norm', norm)
        if self.clip_grad_kwargs:
            parameters = [p for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
            self.clip_func(parameters, **self.clip_grad_kwargs)
        self.optimizer.step(**kwargs)

    def _gradient_norm(self) -> float:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))

    def _skip(self, norm: float) -> None:
        self.skipped_in_a_row += 1
        # The message hub is part of every checkpoint, so the count goes on after a resume.
        total = self.message_hub.get_info('skipped_steps', 0) + 1
        self.message_hub.update_info('skipped_steps', total)
        count = f'{self.skipped_in_a_row} in a row, {total} in all'
        if self.skipped_in_a_row > self.max_skipped:
            raise FloatingPointError(
                f'training stopped: the gradient norm was {norm} in more than {self.max_skipped} steps in a row '
                f'({count}); resume from an earlier checkpoint, lower the learning rate or set optim_wrapper.clip_grad'
            )
        print_log(f'step left out: the gradient norm is {norm} ({count})', logger='current', level=logging.WARNING)


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(FiniteOptimWrapper):
    """Forward pass in bf16 autocast, on any device; weights, gradients and optimiser state stay float32.

    bf16 has the range of float32, so the loss needs no scaling (mmengine's ``AmpOptimWrapper`` scales it all the same,
    and refuses to run on a CPU).
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield

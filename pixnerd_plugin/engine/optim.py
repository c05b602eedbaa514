"""Optimiser wrappers: skip steps with a non-finite gradient; bf16 autocast over float32 weights."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pixnerd_plugin.registry import OPTIM_WRAPPERS


def scale_learning_rate(config: Any) -> None:
    """Do what ``auto_scale_lr`` asks for: scale a config's learning rate with the pictures of an optimiser step.

    These are the batch of every process, times the batches accumulated. (mmengine's own scaling forgets the latter.)
    The config then holds the rate that is used, and mmengine scales nothing.
    """
    settings = config.get('auto_scale_lr') or {}
    if not settings.get('enable'):
        return
    counts = config.optim_wrapper.get('accumulative_counts', 1)
    pictures = config.train_dataloader.batch_size * get_world_size() * counts
    optimizer, base = config.optim_wrapper.optimizer, settings['base_batch_size']
    rate, optimizer.lr = optimizer.lr, optimizer.lr * pictures / base
    settings['enable'] = False
    if is_main_process():
        print(f'Learning rate {rate:g} for {base} pictures a step becomes {optimizer.lr:g} for {pictures}.')


def use_tf32() -> None:
    """Let float32 matrix products and convolutions on a GPU use TF32, where it has that."""
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.allow_tf32 = True


@OPTIM_WRAPPERS.register_module()
class FiniteOptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper``, which skips a step if its gradient is not finite, and logs the gradient norm.

    Under DDP every rank has the same averaged gradient, so all ranks skip the same steps. With a fused optimiser the
    device decides, and the host learns of it while the next step is queued, so nothing waits. Schedules and EMA count a
    skipped step like any other.

    Args:
        max_skipped: number of steps in a row that may be skipped before training stops with ``FloatingPointError``.
        kwargs: as for mmengine's ``OptimWrapper`` (``optimizer``, ``accumulative_counts``, ``clip_grad``).
    """

    def __init__(self, *args: Any, max_skipped: int = 10, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.max_skipped = max_skipped
        self.skipped_in_a_row = 0
        self.skipped_steps = 0
        self._unread: deque[_HostCopy] = deque()

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step known to the host was skipped; after :meth:`settle` that is the last step."""
        return self.skipped_in_a_row > 0

    def step(self, **kwargs: Any) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        self._unread.append(_HostCopy(norm))
        if all(group.get('fused') for group in self.optimizer.param_groups):
            self._clip(parameters, norm)
            # As GradScaler does for fused optimisers: 1 skips the step, including the step count of the moments.
            self.optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
            self.optimizer.step(**kwargs)
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif norm.isfinite():
            self._clip(parameters, norm)
            self.optimizer.step(**kwargs)
        self.settle(unread=int(norm.is_cuda))

    def settle(self, unread: int = 0) -> None:
        """Count and log all steps so far except the last ``unread`` ones.

        Raises:
            FloatingPointError: if too many in a row were skipped.
        """
        while len(self._unread) > unread:
            norm = self._unread.popleft().read()
            if math.isfinite(norm):
                self.skipped_in_a_row = 0
                self.message_hub.update_scalar('train/grad_norm', norm)
            else:
                self._count_skipped(norm)
            self.message_hub.update_scalar('train/skipped_steps', self.skipped_steps)

    def _clip(self, parameters: list[nn.Parameter], norm: Tensor) -> None:
        settings = self.clip_grad_kwargs
        if settings and settings.keys() == {'max_norm'}:
            clip_grads_with_norm_(parameters, settings['max_norm'], norm)
        elif settings:
            self.clip_func(parameters, **settings)

    def _count_skipped(self, norm: float) -> None:
        self.skipped_in_a_row += 1
        self.skipped_steps += 1
        count = f'{self.skipped_in_a_row} in a row, {self.skipped_steps} in total'
        if self.skipped_in_a_row > self.max_skipped:
            raise FloatingPointError(
                f'training stopped: the gradient norm was {norm} in more than {self.max_skipped} steps in a row '
                f'({count}); resume from an earlier checkpoint, lower the learning rate or set optim_wrapper.clip_grad'
            )
        # At ERROR level, because below it mmengine's logger drops the messages of ranks other than 0.
        print_log(f'STEP LEFT OUT: the gradient norm is {norm} ({count})', logger='current', level=logging.ERROR)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | dict(skipped=dict(in_a_row=self.skipped_in_a_row, steps=self.skipped_steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        skipped = state_dict.pop('skipped', dict(in_a_row=0, steps=0))
        self.skipped_in_a_row, self.skipped_steps = skipped['in_a_row'], skipped['steps']
        super().load_state_dict(state_dict)


class _HostCopy:
    """A number on its way to the host; reading it waits for the work queued before it, but not after it."""

    def __init__(self, number: Tensor):
        self._event = torch.cuda.Event() if number.is_cuda else None
        if self._event is None:
            self._host = number.detach()
        else:
            self._host = torch.empty_like(number, device='cpu', pin_memory=True)
            self._host.copy_(number.detach(), non_blocking=True)
            self._event.record()

    def read(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return self._host.item()


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(FiniteOptimWrapper):
    """Forward pass under bf16 autocast, on any device; weights, gradients and optimiser state stay float32.

    bf16 has the range of float32, so the loss needs no scaling. (mmengine's ``AmpOptimWrapper`` scales it anyway, and
    does not run on a CPU.) On a CPU without bf16 instructions, which emulates them, the log has a warning.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not torch.cuda.is_available() and bf16_is_emulated():
            print_log(
                'This CPU has no bf16 instructions: a step in bf16 takes many times as long as in float32. '
                'Set optim_wrapper.type=FiniteOptimWrapper, or leave out --amp.',
                logger='current',
                level=logging.WARNING,
            )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def bf16_is_emulated() -> bool:
    """Whether oneDNN, which multiplies bf16 matrices on a CPU, lacks the instructions for it."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()

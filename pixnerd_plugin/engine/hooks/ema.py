"""Exponential moving average of the network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from pixnerd_plugin.registry import HOOKS

# mmengine's layout: what ExponentialMovingAverage saves is a wrapped module.
PREFIX = 'module.'


@HOOKS.register_module()
class EMAHook(Hook):
    """Keep ``shadow = decay * shadow + (1 - decay) * weights`` in float32, after every optimiser step.

    On a GPU the average is computed on its own stream, in parallel with the next forward and backward pass. The hook
    follows only the trainable parameters of one module, so a frozen teacher and the loss's projector cost no memory.
    Checkpoints have mmengine's layout: ``state_dict`` holds the averaged weights, so that simply loading it gives them,
    and ``ema_state_dict`` holds the raw weights, which training continues from.

    Args:
        decay: share of the old average kept at each step; mmengine's ``momentum`` is ``1 - decay``.
        module: dotted name of the module to follow.
        interval: optimiser steps between two updates, each with ``decay ** interval``.
        device: device of the average; by default that of the weights. ``'cpu'`` saves 4 bytes of GPU memory a
            parameter, but each update copies the weights and waits, so use a longer ``interval`` with it.
    """

    priority = 'NORMAL'

    def __init__(self, decay: float = 0.9999, module: str = 'backbone', interval: int = 1, device: str | None = None):
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        if not 0 <= decay < 1:
            raise ValueError(f'decay must be at least 0 and below 1, got {decay}')
        self.decay = decay
        self.module = module
        self.interval = interval
        self.device = device
        self.steps = 0
        self.shadow: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    def before_run(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.parameters = {
            f'{self.module}.{name}': parameter
            for name, parameter in model.get_submodule(self.module).named_parameters()
            if parameter.requires_grad
        }

    def before_train(self, runner: Any) -> None:
        if not self.shadow:
            self.shadow = {
                name: p.detach().to(self.device or p.device, torch.float32, copy=True)
                for name, p in self.parameters.items()
            }
        if all(average.is_cuda for average in self.shadow.values()):
            self._stream = torch.cuda.Stream()
            # The weights must not change before they have been averaged.
            runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self._wait())

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        # False while gradients accumulate; the wrapper has already counted this iteration.
        if runner.optim_wrapper.should_update():
            self.steps += 1
            if self.steps % self.interval == 0:
                self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            shadow = list(self.shadow.values())
            weights = [
                p.detach().to(s.device, torch.float32) for p, s in zip(self.parameters.values(), shadow, strict=False)
            ]
            torch._foreach_lerp_(shadow, weights, 1 - self.decay**self.interval)

    def _wait(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights within the block, and restore its own exactly after it.

        Weights and averages change places one tensor at a time, so no second copy of the weights is needed.
        """
        # Outside training there is no average; a loaded checkpoint has the averaged weights already.
        if not self.shadow:
            yield
            return
        self._wait()
        pairs = [(p.detach(), self.shadow[name]) for name, p in self.parameters.items()]
        # An average would lose digits in the place of weights that have fewer.
        kept = [average.clone() if average.dtype != weights.dtype else None for weights, average in pairs]
        for weights, average in pairs:
            _exchange(weights, average)
        try:
            yield
        finally:
            for (weights, average), original in zip(pairs, kept, strict=True):
                _exchange(weights, average)
                if original is not None:
                    average.copy_(original)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._wait()
        state = checkpoint['state_dict']
        raw: dict[str, Tensor] = {'steps': torch.tensor(self.steps)}
        for name, average in self.shadow.items():
            raw[PREFIX + name] = state[name]
            state[name] = average.cpu()
        checkpoint['ema_state_dict'] = raw

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        # Without resuming, training starts from the averaged weights of the checkpoint, and so does the average.
        if not runner._resume:
            return
        if 'ema_state_dict' not in checkpoint:
            runner.logger.warning('The checkpoint has no EMA; the average starts from its weights.')
            return
        state, saved = checkpoint['state_dict'], dict(checkpoint['ema_state_dict'])
        self.steps = int(saved.pop('steps', 0))
        averaged = {}
        for name, raw in saved.items():
            name = name.removeprefix(PREFIX)
            averaged[name], state[name] = state[name], raw
        if absent := self.parameters.keys() - averaged.keys():
            raise ValueError(
                f'the checkpoint has no average of {sorted(absent)[0]} ({len(absent)} such parameters): it has another '
                'architecture; train from it with load_from instead of resuming'
            )
        self.shadow = {
            name: averaged[name].to(self.device or p.device, torch.float32) for name, p in self.parameters.items()
        }


def _exchange(a: Tensor, b: Tensor) -> None:
    """Put the values of each into the other."""
    values = a.clone()
    a.copy_(b)
    b.copy_(values)

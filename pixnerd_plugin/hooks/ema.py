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

    Only the trainable parameters of one module are followed, so neither a frozen teacher nor the loss's projector costs
    memory. A checkpoint has mmengine's layout: ``state_dict`` holds the averaged weights, which is what just loading it
    gives, and ``ema_state_dict`` the raw ones, which training goes on from. Validation sees the averaged weights.

    Args:
        decay: share of the old average kept at each step; mmengine's ``momentum`` is ``1 - decay``.
        module: dotted name of the module to follow.
    """

    priority = 'NORMAL'

    def __init__(self, decay: float = 0.9999, module: str = 'backbone'):
        if not 0 <= decay < 1:
            raise ValueError(f'decay must be at least 0 and below 1, got {decay}')
        self.decay = decay
        self.module = module
        self.steps = 0
        self.shadow: dict[str, Tensor] = {}
        self._raw: list[Tensor] | None = None

    def before_run(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.parameters = {
            f'{self.module}.{name}': parameter
            for name, parameter in model.get_submodule(self.module).named_parameters()
            if parameter.requires_grad
        }

    def before_train(self, runner: Any) -> None:
        if not self.shadow:
            self.shadow = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        wrapper = runner.optim_wrapper
        # False within an accumulation; the wrapper has counted this iteration by now.
        if wrapper.should_update() and not getattr(wrapper, 'last_step_skipped', False):
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the present weights."""
        weights = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - self.decay)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights within the block, and exactly its own again after it."""
        self._swap_in()
        try:
            yield
        finally:
            self._swap_out()

    @torch.no_grad()
    def _swap_in(self) -> None:
        # Outside training there is no average; a loaded checkpoint has it as its weights.
        if self.shadow:
            self._raw = [p.detach().clone() for p in self.parameters.values()]
            torch._foreach_copy_(list(self.parameters.values()), list(self.shadow.values()))

    @torch.no_grad()
    def _swap_out(self) -> None:
        if self._raw is not None:
            torch._foreach_copy_(list(self.parameters.values()), self._raw)
            self._raw = None

    def before_val_epoch(self, runner: Any) -> None:
        self._swap_in()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._swap_out()

    def before_test_epoch(self, runner: Any) -> None:
        self._swap_in()

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._swap_out()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint['state_dict']
        raw: dict[str, Tensor] = {'steps': torch.tensor(self.steps)}
        for name, average in self.shadow.items():
            raw[PREFIX + name] = state[name]
            state[name] = average.cpu()
        checkpoint['ema_state_dict'] = raw

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        # A checkpoint that is not resumed but started from gives its averaged weights, and the average starts there.
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
                f'the checkpoint has no average of {sorted(absent)[0]} ({len(absent)} parameters in all): it is of '
                'another architecture; train from it with load_from instead of resuming'
            )
        self.shadow = {name: averaged[name].float().to(p.device) for name, p in self.parameters.items()}

"""The checkpoint that was best in validation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mmengine.hooks import Hook

from pixnerd_plugin.engine.preemption import busy
from pixnerd_plugin.registry import HOOKS

from .checkpoint import AtomicCheckpointHook, streamed

NAME = 'best.pth'


@HOOKS.register_module()
class BestCheckpointHook(Hook):
    """Keep the weights of the best validation so far in ``work_dir/best.pth``: EMA and raw, without the optimiser.

    Args:
        save_best: the metric that decides, such as ``'loss_flow'`` or ``'frechet_distance'``.
        rule: ``'less'`` if a smaller value is better, or ``'greater'``.

    Raises:
        ValueError: if the rule is another, or if no metric has that name: at the start, or at the first validation if
            a metric does not tell its names before.
    """

    def __init__(self, save_best: str = 'loss_flow', rule: str = 'less'):
        if rule not in ('less', 'greater'):
            raise ValueError(f"BestCheckpointHook: rule must be 'less' or 'greater', got {rule!r}")
        self.save_best = save_best.removeprefix('val/')
        self.rule = rule

    def before_train(self, runner: Any) -> None:
        names = getattr(runner.val_loop, 'metric_names', lambda: None)()
        if names is not None:
            self._require(names)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        known = {name: value for name, value in (metrics or {}).items() if '/' not in name}
        self._require(known)
        value, key = known[self.save_best], f'best_{self.save_best}'
        hub = runner.message_hub
        best = hub.get_info(key) if key in hub.runtime_info else None
        if not math.isfinite(value):  # nothing would ever be less, or greater
            return
        if best is not None and not (value < best if self.rule == 'less' else value > best):
            return
        # Its folder, which need not be the work folder.
        saver = next((hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)), None)
        try:
            with busy(), streamed():
                runner.save_checkpoint(
                    saver.out_dir if saver else runner.work_dir,
                    NAME,
                    save_optimizer=False,
                    save_param_scheduler=False,
                    meta=dict(epoch=runner.epoch, iter=runner.iter),
                    by_epoch=False,
                )
        except OSError as error:
            runner.logger.error(f'CHECKPOINT NOT SAVED: {NAME}: {error}. Training continues.')
            return
        hub.update_info(key, value)
        runner.logger.info(f'{NAME}: {self.save_best} {value:.4g} at iteration {runner.iter}')

    def _require(self, known: Collection[str]) -> None:
        if self.save_best not in known:
            raise ValueError(
                f'BestCheckpointHook: save_best={self.save_best!r} is no metric; there are: {", ".join(sorted(known))}'
            )

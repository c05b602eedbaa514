"""How long an iteration takes, apart from what happens between two."""

from __future__ import annotations

import time
from typing import Any

from mmengine.hooks import IterTimerHook

from pixnerd_plugin.registry import HOOKS


@HOOKS.register_module()
class StepTimerHook(IterTimerHook):
    """mmengine's ``IterTimerHook``, whose times leave out what happens between iterations: grids, saves, validation.

    ``time`` is that of waiting for the data, the step and the EMA; ``data_time``, the throughput and the time that is
    left follow from it.
    """

    # After the EMA, which is part of a step, and before the logger.
    priority = 'BELOW_NORMAL'

    def before_load(self, runner: Any) -> None:
        """The loop calls this just before it asks for a batch."""
        self.t = time.time()

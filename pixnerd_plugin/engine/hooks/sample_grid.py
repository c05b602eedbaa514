"""Samples during training, always from the same noise and conditions, so that only the weights differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from pixnerd_plugin.engine.preemption import busy
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.images import image_grid, save_png, to_uint8
from pixnerd_plugin.registry import HOOKS

from .ema import EMAHook


@HOOKS.register_module()
class SampleGridHook(Hook):
    """Sample a grid from the EMA weights every ``interval`` iterations and at the end of training.

    Rank 0 writes ``work_dir/samples/iter_N.png`` and sends the grid to the visualizer's backends. With ``raw`` it also
    writes ``iter_N_raw.png``, the same samples from the weights being trained.

    Args:
        interval: iterations between grids.
        conditions: what the conditioner reads, one entry per picture: ``dict(label=[...])`` or ``dict(text=[...])``.
        size: (height, width) of a picture in pixels, or one number for both; or a list of (height, width), one grid
            each, named ``iter_N_HxW.png``.
        seed: seed of the first picture's noise; each following picture uses the next number.
        batch_size: number of pictures sampled at once.
        columns: pictures in a row of the grid; by default the grid is nearly square.
        raw: also sample from the raw weights.

    Raises:
        ValueError: if the conditions are empty or have different lengths.
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int,
        conditions: Mapping[str, Sequence[Any]],
        size: int | tuple[int, int] | Sequence[tuple[int, int]],
        seed: int = 0,
        batch_size: int = 16,
        columns: int | None = None,
        raw: bool = False,
    ):
        counts = {len(values) for values in conditions.values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f'conditions must be lists of one length, one entry per picture; got lengths {counts}')
        self.interval = interval
        self.conditions = conditions
        self.count = counts.pop()
        several: Any = [(size, size)] if isinstance(size, int) else [size] if isinstance(size[0], int) else size
        self.sizes: list[tuple[int, int]] = [(height, width) for height, width in several]
        self.seed = seed
        self.batch_size = batch_size
        self.columns = columns
        self.raw = raw

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            with busy():
                self.draw(runner)

    @master_only
    def draw(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        ema = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
        model.eval()
        with ema.applied() if ema else nullcontext():
            self._write(runner, model)
        if ema and self.raw:
            self._write(runner, model, '_raw')
        model.train()

    def _write(self, runner: Any, model: Any, suffix: str = '') -> None:
        step = runner.iter + 1
        for size in self.sizes:
            starts = range(0, self.count, self.batch_size)
            grid = image_grid(to_uint8(torch.cat([self._sample(model, start, size) for start in starts])), self.columns)
            name = f'{suffix}_{size[0]}x{size[1]}' if len(self.sizes) > 1 else suffix
            save_png(Path(runner.work_dir) / 'samples' / f'iter_{step}{name}.png', grid)
            runner.visualizer.add_image(f'samples{name}', grid, step)

    def _sample(self, model: Any, start: int, size: tuple[int, int]) -> torch.Tensor:
        stop = min(start + self.batch_size, self.count)
        conditions = {key: values[start:stop] for key, values in self.conditions.items()}
        generators = image_generators(range(self.seed + start, self.seed + stop))
        return model.sample(conditions, draw_noise(generators, (3, *size)), generators=generators)

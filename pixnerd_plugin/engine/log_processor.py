"""What the training log has beyond mmengine's: throughput, waiting for data, losses by time."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import LogProcessor

from pixnerd_plugin.models.flops import forward_flops, peak_flops
from pixnerd_plugin.registry import LOG_PROCESSORS

from .hooks.scalars import BY_TIME


@LOG_PROCESSORS.register_module()
class TrainingLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor``, which adds to the training log:

    - ``images_per_second`` of all ranks together, over the window;
    - ``data_wait``, the share of the time that a rank waits for data, in [0, 1];
    - ``mfu``, the model FLOPs utilisation, in [0, 1]: three times the FLOPs of the backbone's forward pass over the
      peak of the GPUs. Recomputed activations, the teacher and the text encoder do not count;
    - ``val/loss_flow`` and what else a validation measures;
    - ``loss_flow_by_time/…`` and ``loss_repa_by_time/…``, in files and backends but not on the terminal.

    Args:
        peak_tflops: dense bf16 TFLOP/s of one device. By default known GPUs have theirs, and others no ``mfu``.
        kwargs: as for mmengine's ``LogProcessor``.
    """

    def __init__(self, *args: Any, peak_tflops: float | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.peak_tflops = peak_tflops
        self._step_flops: float | None = None

    def get_log_after_iter(self, runner: Any, batch_idx: int, mode: str) -> tuple[dict[str, Any], str]:
        tag, text = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != 'train':
            return tag, text
        prefix = 'train/' if self.log_with_hierarchy else ''
        speed = self._speed(runner)
        tag |= {prefix + name: value for name, value in speed.items()}
        for name, buffer in runner.message_hub.log_scalars.items():
            group, _, name = name.partition('/')
            values, counts = (history[-self.window_size :] for history in buffer.data)
            if group == BY_TIME and counts.sum():
                tag[prefix + name] = float(values.sum() / counts.sum())
        return tag, text + ''.join(f'  {name}: {value:.{self.num_digits}g}' for name, value in speed.items())

    def get_log_after_epoch(
        self, runner: Any, batch_idx: int, mode: str, with_non_scalar: bool = False
    ) -> tuple[dict[str, Any], str]:
        if mode != 'val':
            return super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        scalars = runner.message_hub.log_scalars
        tag = {name: buffer.current() for name, buffer in scalars.items() if name.startswith('val/')}
        shown = [f'{name}: {value:.{self.num_digits}g}' for name, value in tag.items() if '_by_time/' not in name]
        return tag, '  '.join([f'Iter(val) [{runner.iter}/{runner.max_iters}]', *shown])

    def _speed(self, runner: Any) -> dict[str, float]:
        scalars = runner.message_hub.log_scalars
        if 'train/time' not in scalars or not hasattr(runner.train_dataloader.batch_sampler, 'batch_size'):
            return {}
        seconds = scalars['train/time'].mean(self.window_size)
        batch = runner.train_dataloader.batch_sampler.batch_size
        speed = dict(
            images_per_second=batch * get_world_size() / seconds,
            data_wait=scalars['train/data_time'].mean(self.window_size) / seconds,
        )
        if peak := self.peak_tflops or peak_flops() / 1e12:
            speed['mfu'] = self._flops(runner) * batch / seconds / (peak * 1e12)
        return speed

    def _flops(self, runner: Any) -> float:
        """FLOPs of a training step per picture."""
        if self._step_flops is None:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self._step_flops = 3.0 * forward_flops(model.backbone, model.resolution or 0)
        return self._step_flops

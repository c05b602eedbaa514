"""Averages of several lengths from one run, from which tools/analysis_tools/posthoc_ema.py builds any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from pixnerd_plugin.checkpoints.averages import AVERAGE_KEY, snapshot_name
from pixnerd_plugin.checkpoints.load import METADATA_KEY
from pixnerd_plugin.formats.lazy import LazyTensor
from pixnerd_plugin.formats.safetensors_file import write_safetensors
from pixnerd_plugin.functional.averages import decay, exponent
from pixnerd_plugin.registry import HOOKS

_STATE = 'power_ema'


@HOOKS.register_module()
class PowerEMAHook(Hook):
    """Keep averages with power-function profiles (EDM2), and store each every ``interval`` iterations and at the end.

    ``work_dir/ema/iter_N_sigma_0.05.safetensors`` is a network of its own, for ``load_backbone`` and all tools. The
    averages are float32 and need every step from the first, so a run that was begun without this hook cannot get it.
    They are separate from ``EMAHook``, whose average samples and checkpoints use.

    Args:
        interval: iterations between two that are stored.
        sigma_rels: lengths of the averages, as a share of the training so far; EDM2 takes 0.05 and 0.1.
        module: dotted name of the module to follow.
        device: device of the averages; by default that of the weights. They take 4 bytes a parameter each.
        dtype: ``'float16'``, as in EDM2, or ``'float32'``, of what is stored.

    Raises:
        ValueError: if an argument is out of range.
    """

    # After the optimiser's step, before the checkpoint.
    priority = 'NORMAL'

    def __init__(
        self,
        interval: int,
        sigma_rels: Sequence[float] = (0.05, 0.1),
        module: str = 'backbone',
        device: str | None = None,
        dtype: str = 'float16',
    ):
        if interval < 1:
            raise ValueError(f'PowerEMAHook: interval must be at least 1, got {interval}')
        if dtype not in ('float16', 'float32'):
            raise ValueError(f"PowerEMAHook: dtype must be 'float16' or 'float32', got {dtype!r}")
        if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
            raise ValueError(f'PowerEMAHook: sigma_rels={list(sigma_rels)} must be different numbers, at least one')
        self.interval = interval
        self.exponents = {f'{sigma_rel:g}': exponent(sigma_rel) for sigma_rel in sigma_rels}
        self.module = module
        self.device = device
        self.dtype = getattr(torch, dtype)
        self.steps = 0
        self.averages: dict[str, list[Tensor]] = {}

    def before_run(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if getattr(model, 'lora', None):
            raise ValueError('PowerEMAHook averages whole networks; leave it out of a training with model.lora')
        self._net = model.get_submodule(self.module)
        self.parameters = {name: p for name, p in self._net.named_parameters() if p.requires_grad}

    def before_train(self, runner: Any) -> None:
        if not self.averages:
            self.averages = {
                sigma_rel: [
                    p.detach().to(self.device or p.device, torch.float32, copy=True) for p in self.parameters.values()
                ]
                for sigma_rel in self.exponents
            }

        if is_main_process():
            self._set_aside_after(Path(runner.work_dir) / 'ema', runner.iter)

    @staticmethod
    def _set_aside_after(folder: Path, iteration: int) -> None:
        """Rename what another start stored later than here, so that no average is built from both."""
        for path in list(folder.glob('iter_*_sigma_*.safetensors')):
            number = path.name.split('_')[1]
            if number.isdigit() and int(number) > iteration:
                path.replace(path.with_name(f'{path.name}.old'))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        # False while gradients accumulate.
        if runner.optim_wrapper.should_update():
            self.update()
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self.store(runner)

    @torch.no_grad()
    def update(self) -> None:
        """Move each average towards the current weights."""
        self.steps += 1
        for sigma_rel, average in self.averages.items():
            weights = [p.detach().to(a.device, a.dtype) for p, a in zip(self.parameters.values(), average, strict=True)]
            torch._foreach_lerp_(average, weights, 1 - decay(self.steps, self.exponents[sigma_rel]))

    def store(self, runner: Any) -> None:
        """Write each average; only the main process does."""
        if not is_main_process() or not self.steps:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        iteration = runner.iter + 1
        frozen = {name: tensor for name, tensor in self._net.state_dict().items() if name not in self.parameters}
        for sigma_rel, average in self.averages.items():
            tensors = frozen | dict(zip(self.parameters, average, strict=True))
            described = dict(steps=self.steps, iteration=iteration, sigma_rel=float(sigma_rel))
            texts = {
                METADATA_KEY: json.dumps(dict(model.description(), weights='ema'), ensure_ascii=False),
                AVERAGE_KEY: json.dumps(described),
            }
            path = Path(runner.work_dir) / 'ema' / snapshot_name(iteration, sigma_rel)
            path.parent.mkdir(exist_ok=True)
            lazy = {name: LazyTensor.of(_small(tensor, self.dtype)) for name, tensor in tensors.items()}
            try:
                write_safetensors(path, lazy, texts)
            except OSError as error:
                runner.logger.error(f'AVERAGE NOT STORED: {path}: {error}. Training continues.')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        # A checkpoint to sample from needs no state.
        if 'optimizer' in checkpoint:
            averages = {
                sigma_rel: {name: tensor.cpu() for name, tensor in zip(self.parameters, average, strict=True)}
                for sigma_rel, average in self.averages.items()
            }
            checkpoint[_STATE] = dict(steps=self.steps, averages=averages)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        saved = checkpoint.get(_STATE) or dict(steps=0, averages={})
        if absent := self.exponents.keys() - saved['averages'].keys():
            raise ValueError(
                f'the checkpoint has no average of sigma_rel={sorted(absent)[0]}, which needs every step from the '
                'first; leave it out of PowerEMAHook, or start anew'
            )
        self.steps = saved['steps']
        self.averages = {
            sigma_rel: [
                saved['averages'][sigma_rel][name].to(self.device or p.device, torch.float32)
                for name, p in self.parameters.items()
            ]
            for sigma_rel in self.exponents
        }


def _small(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype)

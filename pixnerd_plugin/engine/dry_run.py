"""Estimate the cost of a training from a few steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.model import is_model_wrapper
from torch import nn

from pixnerd_plugin.memory import available_memory, memory
from pixnerd_plugin.models.flops import forward_flops, peak_flops

from .hooks import AtomicCheckpointHook, EMAHook

_STEPS = 4
_GIB = 2**30


@contextmanager
def scratch_folder(config: Any) -> Iterator[None]:
    """Make ``config`` write to a temporary folder and log only warnings."""
    with TemporaryDirectory() as folder:
        config.work_dir, config.log_level, config.visualizer = folder, 'WARNING', dict(type='Visualizer')
        yield


def dry_run(runner: Any) -> None:
    """Take a few training steps and print model, data, memory, FLOPs and schedule; save nothing.

    The swap of the averaged weights for samples and a save are made too, but for the disk, because they need memory.
    Every process of a distributed run calls it, and the main one prints. The first step does not count for the rate.

    Raises:
        ValueError: if a loss is not finite.
    """
    loop = runner.train_loop
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    runner.call_hook('before_run')
    runner.optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
    runner.call_hook('before_train')  # the EMA allocates its memory here
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model

    seconds, loading = [], []
    started = time.perf_counter()
    batches = iter(loop.dataloader)
    for _ in range(_STEPS):
        batch = next(batches)
        loaded = time.perf_counter()
        runner.model.train()
        outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        if not all(value.isfinite() for value in outputs.values()):
            raise ValueError(f'a loss is not finite: { {name: float(value) for name, value in outputs.items()} }')
        loading.append(loaded - started)
        seconds.append(time.perf_counter() - loaded)
        started = time.perf_counter()
    # What a run does besides, for the peaks of memory.
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            with hook.applied():
                pass
    saves = [hook.measure(runner) for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
    if is_main_process():
        step = sum(seconds[1:]) / len(seconds[1:])
        wait = sum(loading[1:]) / len(loading[1:])
        for line in report(runner, model, batch, step, wait, max(saves, default=0)):
            print(line)


def report(runner: Any, model: Any, batch: Any, step: float, wait: float, save: int) -> list[str]:
    """The lines of the report: a step takes ``step`` s after ``wait`` s for its data, a checkpoint ``save`` bytes."""
    loop, wrapper = runner.train_loop, runner.optim_wrapper
    dataset, batch_size = loop.dataloader.dataset, loop.dataloader.batch_sampler.batch_size
    ranks, counts = get_world_size(), wrapper._accumulative_counts
    images = batch_size * ranks
    flops = forward_flops(model.backbone, model.resolution)
    total = 3 * flops * images * loop.max_iters
    rate = images / (step + wait)
    lines = [
        f'model     {_parameters(model.backbone)}',
        f'          head {type(model.backbone.head).__name__} {_count(model.backbone.head):,}'
        + (f', projector {_count(model.loss.projector):,}' if hasattr(model.loss, 'projector') else ''),
        f'data      {len(dataset):,} samples of {type(dataset).__name__}, '
        f'fingerprint {getattr(dataset, "fingerprint", None)}, '
        f'{getattr(dataset, "num_damaged", 0)} damaged in the first batches',
        f'          a batch is {_shape(batch)}',
        f'memory    {_memory(model, wrapper)}',
        f'          {_host_memory()}',
        f'saving    {save / _GIB:.3g} GiB a checkpoint, streamed to the disk',
        f'FLOPs     {flops / 1e9:.3g} G a picture forward, {3 * flops * batch_size / 1e12:.3g} T a step and process, '
        f'{total / 1e18:.3g} E in total',
        f'schedule  {loop.max_iters:,} iterations, {-(-loop.max_iters // counts):,} optimiser steps of '
        f'{images * counts} pictures ({ranks} processes x {batch_size} x {counts} accumulated)',
        f'          {images * loop.max_iters:,} pictures, {images * loop.max_iters / len(dataset):.1f} times the data',
        f'rate      {rate:.4g} pictures/s here: {step:.3f} s a step and {wait:.3f} s waiting for data',
        f'          {loop.max_iters * (step + wait) / 86400:.3g} days in total',
    ]
    if peak := peak_flops():
        lines.append(f'          {3 * flops * batch_size / (step + wait) / peak:.1%} of the peak of this GPU')
    return lines


def _parameters(net: nn.Module) -> str:
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return f'{type(net).__name__}, {_count(net):,} parameters, {trained:,} trainable'


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _shape(batch: Any) -> str:
    samples = ', '.join(sorted(batch['data_samples']))
    return f'inputs {tuple(batch["inputs"].shape)} {batch["inputs"].dtype}, and {samples}'


def _memory(model: nn.Module, wrapper: Any) -> str:
    weights = sum(p.nbytes for p in model.parameters())
    state = sum(
        t.nbytes for moments in wrapper.optimizer.state.values() for t in moments.values() if torch.is_tensor(t)
    )
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    parts = f'weights {weights / _GIB:.2f}, gradients {gradients / _GIB:.2f}, optimiser {state / _GIB:.2f}'
    if torch.cuda.is_available():
        peak = f'peak {torch.cuda.max_memory_allocated() / _GIB:.2f} GiB on the GPU'
        return f'{peak}, with the EMA in place for samples: {parts}, EMA, activations'
    return f'on the CPU: {parts}, EMA, activations, libraries'


def _host_memory() -> str:
    counted, free = memory('VmHWM'), available_memory()
    if counted is None or free is None:
        return 'peak of the host not known on this system'
    where = 'the state copied from the GPU to save it included' if torch.cuda.is_available() else 'a save included'
    return f'peak {counted[0] / 1024:.2f} GiB resident on the host, {where}; {free / 1024:.2f} GiB are free beside it'

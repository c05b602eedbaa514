"""Parts that fail on purpose, for tests of training."""

import os
import signal

import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from pixnerd_plugin.models.losses import FlowMatchREPALoss
from pixnerd_plugin.registry import HOOKS, MODELS, TRANSFORMS


@MODELS.register_module()
class FaultyLoss(FlowMatchREPALoss):
    """Not a number at the given calls, on one rank only."""

    def __init__(self, nan_at=(), rank=0, **kwargs):
        super().__init__(**kwargs)
        self.nan_at, self.rank, self.calls = nan_at, rank, 0

    def forward(self, *args, **kwargs):
        losses = super().forward(*args, **kwargs)
        self.calls += 1
        if self.calls in self.nan_at and get_rank() == self.rank:
            losses['loss_flow'] = losses['loss_flow'] * torch.nan
        return losses


@MODELS.register_module()
class FaultyTeacher:
    """Features of random pictures (B, 4, 16), not a number for the first picture at the given calls."""

    def __init__(self, nan_at=()):
        self.nan_at, self.calls = nan_at, 0

    def __call__(self, images):
        self.calls += 1
        features = images.flatten(1)[:, : 4 * 16].unflatten(1, (4, 16)).clone()
        if self.calls in self.nan_at:
            features[0] = torch.nan
        return features


@HOOKS.register_module()
class SignalHook(Hook):
    """Send this process, or one data worker of it, a signal before the iteration ``at``."""

    def __init__(self, at, number, rank=0, worker=False, once=''):
        self.at, self.number, self.rank, self.worker, self.once = at, number, rank, worker, once

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != self.at or runner.rank != self.rank or (self.once and os.path.exists(self.once)):
            return
        if self.once:
            open(self.once, 'w').close()
        pid = runner.train_loop._batches._workers[0].pid if self.worker else os.getpid()
        os.kill(pid, getattr(signal, self.number))


@HOOKS.register_module()
class KilledWhileSaving(Hook):
    """SIGKILL while the checkpoint ``name`` is written: at ``moment`` 'half', 'unnamed' or 'unannounced'."""

    def __init__(self, name, moment):
        self.name, self.moment = name, moment

    def before_train(self, runner):
        save, replace = torch.save, os.replace

        def faulty_save(content, file):
            save(content, file)
            if file.name.endswith(self.name) and self.moment == 'half':
                file.truncate(file.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def faulty_replace(source, target):
            if os.path.basename(target) == self.name and self.moment == 'unnamed':
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if os.path.basename(target) == self.name:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save, os.replace = faulty_save, faulty_replace


@TRANSFORMS.register_module()
class LabelFromText(BaseTransform):
    """A class from a caption that is a number."""

    def transform(self, results):
        return results | dict(label=int(results['text']))

from pathlib import Path

import torch
from mmengine.hooks import Hook

from pixnerd_plugin.registry import HOOKS


@HOOKS.register_module()
class RecordNoiseHook(Hook):
    """Write the first number each training step is going to draw to ``work_dir/noise_RANK.txt``."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        with torch.random.fork_rng(devices=[]), open(Path(runner.work_dir) / f'noise_{runner.rank}.txt', 'a') as file:
            labels = data_batch['data_samples']['label'].tolist()
            file.write(f'{runner.iter} {torch.randn(()).item()} {labels}\n')

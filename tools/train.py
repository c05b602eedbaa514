#!/usr/bin/env python
"""Train a model from a config.

Exit codes: 0 done; 1 an error, in one line; 75 asked to stop (SIGTERM), state saved: start again with --resume.
"""

import argparse
import os
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, such as mm_configs/pixnerd_digits.py')
    parser.add_argument('--work-dir', help='folder for logs, pictures and checkpoints (work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT or, without one, from the last in the work folder; starts anew if there is none',
    )
    parser.add_argument('--force', action='store_true', help='resume even if config, versions or data have changed')
    parser.add_argument('--amp', action='store_true', help='bf16 autocast over float32 weights')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch of all processes'
    )
    parser.add_argument('--seed', type=int, help='seed of the data order, times and noise')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='replace config entries'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='build all, take a few steps, say what training will cost; write nothing',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    import pixnerd_plugin.engine  # noqa: F401 (first: registers what configs name)

    # isort: split
    import torch
    from mmengine.runner import Runner

    from pixnerd_plugin.checkpoints import read_checkpoint
    from pixnerd_plugin.engine.config import hide_broken_torchvision, load_config
    from pixnerd_plugin.engine.preemption import EXIT_REQUEUE, watch
    from pixnerd_plugin.engine.processes import set_up_processes, tear_down_processes
    from pixnerd_plugin.memory import keep_freed_memory

    watch()
    hide_broken_torchvision()
    config = load_config(args.config, args.cfg_options)
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        config.optim_wrapper.type = 'Bf16OptimWrapper'
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise ValueError(f'--auto-scale-lr: {args.config} has no auto_scale_lr=dict(base_batch_size=...)')
        config.auto_scale_lr.enable = True
    if args.seed is not None:
        config.randomness = dict(config.get('randomness', {}), seed=args.seed)
        config.train_dataloader.sampler.seed = args.seed
    set_up_processes(config, args.launcher)
    if not torch.cuda.is_available():
        keep_freed_memory()
    # A run that torchrun starts again after a fault goes on where it was.
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
    if args.resume or restarted:
        set_resume(config, args.resume or 'auto', args.force)
    start_from = None if config.get('resume') else config.get('load_from')
    if start_from:
        config.load_from = None
        read_checkpoint(start_from)  # a file that cannot be read ends the run here, before anything is built
    with scratch_folder(config) if args.dry_run else nullcontext():
        runner = Runner.from_cfg(config)
        if start_from:
            load_initial_weights(runner.model, start_from)
        if args.dry_run:
            from pixnerd_plugin.engine.dry_run import dry_run

            dry_run(runner)
            tear_down_processes()
            return 0
    # mmengine would read the whole checkpoint, some 20 bytes a parameter, into the GPU's memory beside the model.
    runner.resume = partial(runner.resume, map_location='cpu')
    runner.train()
    tear_down_processes()
    if not getattr(runner.train_loop, 'preempted', False):
        return 0
    if 'PIXNERD_PREEMPTED' in os.environ:
        Path(os.environ['PIXNERD_PREEMPTED']).touch()  # for tools/dist_train.sh
    return EXIT_REQUEUE


@contextmanager
def scratch_folder(config):
    """Let all that ``config`` writes go to a folder that is removed afterwards, and its log say warnings only."""
    with TemporaryDirectory() as folder:
        config.work_dir, config.log_level, config.visualizer = folder, 'WARNING', dict(type='Visualizer')
        yield


def load_initial_weights(model, path: str) -> None:
    """Start from the network of a file in any layout; mmengine would leave out in silence what does not fit."""
    from mmengine.model import is_model_wrapper

    from pixnerd_plugin.checkpoints import load_into
    from pixnerd_plugin.checkpoints.contents import open_contents

    model = model.module if is_model_wrapper(model) else model
    load_into(model.backbone, path)
    projector = open_contents(path).projector
    if projector and model.loss is not None:
        own = {name: tuple(tensor.shape) for name, tensor in model.loss.projector.state_dict().items()}
        if own == {name: tensor.shape for name, tensor in projector.items()}:
            model.loss.projector.load_state_dict({name: tensor.read() for name, tensor in projector.items()})
        else:
            print(f'The projector of {path} is of another size; the alignment loss starts with a new one.')


def set_resume(config, checkpoint: str, force: bool) -> None:
    """Let ``config`` resume from the checkpoint that rank 0 finds whole."""
    from mmengine.dist import broadcast_object_list, is_main_process

    from pixnerd_plugin.engine.hooks.scalars import forget_scalars_after
    from pixnerd_plugin.engine.resume import find_checkpoint, require_checkpoint

    outcome = [None]
    if is_main_process():
        try:
            outcome = [find_checkpoint(config.work_dir) if checkpoint == 'auto' else require_checkpoint(checkpoint)]
        except (ValueError, OSError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    (found,) = outcome
    if isinstance(found, Exception):
        raise found
    if found is None:
        if is_main_process():
            print(f'No checkpoint in {config.work_dir}; training starts from the beginning.')
            forget_scalars_after(config.work_dir, 0)
        return
    config.resume, config.load_from, config.resume_anyway = True, str(found), force


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors
    from pixnerd_plugin.engine.processes import fail_at_once

    with fail_at_once(), one_line_errors():
        sys.exit(main(arguments))

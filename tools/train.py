#!/usr/bin/env python
"""Train a model from a config.

Exit codes: 0 done; 1 an error, in one line; 75 asked to stop (SIGTERM), state saved: start again with --resume.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import options


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
    parser.add_argument(
        '--reset-schedule',
        action='store_true',
        help='resume with the learning rate, schedule and length of the config; moments and averages go on',
    )
    parser.add_argument('--amp', action='store_true', help='bf16 autocast over float32 weights')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch of all processes'
    )
    parser.add_argument('--seed', type=int, help='seed of the data order, times and noise')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='build all, take a few steps, say what training will cost; write nothing',
    )
    options.add_config_options(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    import pixnerd_plugin.engine  # noqa: F401 (first: registers what configs name)

    # isort: split
    import torch
    from mmengine.runner import Runner

    from pixnerd_plugin.checkpoints import read_checkpoint
    from pixnerd_plugin.engine.classes import use_own_classes
    from pixnerd_plugin.engine.config import hide_broken_torchvision
    from pixnerd_plugin.engine.dry_run import dry_run, scratch_folder
    from pixnerd_plugin.engine.optim import scale_learning_rate, use_tf32
    from pixnerd_plugin.engine.preemption import EXIT_REQUEUE, watch
    from pixnerd_plugin.engine.processes import set_up_processes, tear_down_processes
    from pixnerd_plugin.engine.resume import load_initial_weights, require_fresh, set_resume
    from pixnerd_plugin.engine.workers import start_server
    from pixnerd_plugin.memory import keep_freed_memory

    watch()
    hide_broken_torchvision()
    if torch.cuda.is_available():
        use_tf32()
    else:
        keep_freed_memory()
    config = read_config(args)
    use_own_classes(config)
    start_server(config)
    set_up_processes(config, args.launcher)
    scale_learning_rate(config)
    # A run that torchrun starts again after a fault goes on where it was.
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
    # A config may say resume=True, and from where, as --resume does.
    checkpoint = args.resume or (config.get('resume') and config.get('load_from'))
    if checkpoint or config.get('resume') or restarted:
        set_resume(config, checkpoint or 'auto', args.force, args.reset_schedule, restarted)
    elif args.reset_schedule:
        raise ValueError('--reset-schedule is for a run that goes on; give it together with --resume')
    elif not args.dry_run:
        require_fresh(config.work_dir)
    initial = None if config.get('resume') else config.get('load_from')
    if initial:
        config.load_from = None
        read_checkpoint(initial)  # a file that cannot be read ends the run here, before anything is built

    with scratch_folder(config) if args.dry_run else nullcontext():
        runner = Runner.from_cfg(config)
        if initial:
            load_initial_weights(runner.model, initial, new_classes=config.get('own_classes', False))
        if args.dry_run:
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


def read_config(args: argparse.Namespace):
    """The config with what the command line changes."""
    from pixnerd_plugin.engine.config import load_config

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
    return config


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        from pixnerd_plugin.engine.processes import fail_at_once

        with fail_at_once():
            sys.exit(main(arguments))

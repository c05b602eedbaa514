#!/usr/bin/env python
"""Train a model from a config."""

import argparse
from pathlib import Path

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, such as mm_configs/pixnerd_digits.py')
    parser.add_argument('--work-dir', help='folder for logs, pictures and checkpoints (work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT or, without one, from the last in the work folder; starts anew if there is none',
    )
    parser.add_argument('--amp', action='store_true', help='bf16 autocast over float32 weights')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch of all processes'
    )
    parser.add_argument('--seed', type=int, help='seed of the data order, times and noise')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='replace config entries'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmengine.runner import Runner

    import pixnerd_plugin.training  # noqa: F401 (registers what configs name)
    from pixnerd_plugin.checkpoints import read_checkpoint
    from pixnerd_plugin.cli import hide_broken_torchvision, load_config, set_up_processes, tear_down_processes

    hide_broken_torchvision()
    config = load_config(args.config, args.cfg_options)
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.resume:
        set_resume(config, args.resume)
    if args.amp:
        config.optim_wrapper.type = 'Bf16OptimWrapper'
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise ValueError(f'--auto-scale-lr: {args.config} has no auto_scale_lr=dict(base_batch_size=...)')
        config.auto_scale_lr.enable = True
    if args.seed is not None:
        config.randomness = dict(config.get('randomness', {}), seed=args.seed)
        config.train_dataloader.sampler.seed = args.seed
    start_from = None if config.get('resume') else config.get('load_from')
    if start_from:
        config.load_from = None
        read_checkpoint(start_from)  # a file that cannot be read ends the run here, before anything is built
    set_up_processes(config, args.launcher)
    runner = Runner.from_cfg(config)
    if start_from:
        load_initial_weights(runner.model, start_from)
    runner.train()
    tear_down_processes()


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


def set_resume(config, checkpoint: str) -> None:
    from pixnerd_plugin.cli import find_checkpoint, require_checkpoint

    found = find_checkpoint(config.work_dir) if checkpoint == 'auto' else require_checkpoint(checkpoint)
    if found is None:
        print(f'No checkpoint in {config.work_dir}; training starts from the beginning.')
        return
    config.resume, config.load_from = True, str(found)


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

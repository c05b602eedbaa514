#!/usr/bin/env python
"""Sample from a trained model: a grid as PNG and all samples as npz (arr_0, uint8, NHWC)."""

import argparse
from pathlib import Path

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file the model was trained with')
    parser.add_argument('checkpoint', help='checkpoint of the training, or published weights; the EMA is used')
    parser.add_argument('--work-dir', help='folder to write test/ into (work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--num-samples', type=int, default=100, help='how many pictures (100); classes take turns')
    parser.add_argument('--batch-size', type=int, default=50, help='pictures sampled at once (50)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first picture; the next take the next (0)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='replace config entries'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import numpy as np
    from mmengine.device import get_device
    from mmengine.dist import all_gather_object, get_dist_info, init_dist, is_distributed
    from mmengine.registry import init_default_scope

    import pixnerd_plugin.training  # noqa: F401 (registers what configs name)
    from pixnerd_plugin.atomic import atomic_path
    from pixnerd_plugin.checkpoints import load_into, read_checkpoint
    from pixnerd_plugin.cli import hide_broken_torchvision, load_config, set_up_processes, tear_down_processes
    from pixnerd_plugin.images import image_grid, save_png
    from pixnerd_plugin.registry import MODELS

    if args.num_samples < 1:
        raise ValueError(f'--num-samples must be at least 1, got {args.num_samples}')
    read_checkpoint(args.checkpoint)  # ends here if it cannot be read
    hide_broken_torchvision()
    config = load_config(args.config, args.cfg_options)
    set_up_processes(config, args.launcher)
    if args.launcher != 'none' and not is_distributed():
        init_dist(args.launcher)
    init_default_scope('pixnerd')

    hooks = [*config.get('default_hooks', {}).values(), *config.get('custom_hooks', [])]
    hook = next((hook for hook in hooks if hook and hook['type'] == 'SampleGridHook'), None)
    if hook is None:
        raise ValueError(f'{args.config} has no SampleGridHook to take the picture size from')
    model = MODELS.build(dict(config.model, loss=None)).to(get_device()).eval()
    load_into(model.backbone, args.checkpoint)

    rank, world_size = get_dist_info()
    indices = range(args.num_samples)[rank::world_size]
    samples = sample(model, hook, indices, args.batch_size, args.seed)
    parts = all_gather_object(samples)
    tear_down_processes()
    if rank != 0:
        return
    order = np.argsort(np.concatenate([np.arange(args.num_samples)[r::world_size] for r in range(world_size)]))
    images = np.concatenate(parts)[order]
    out = Path(args.work_dir or f'work_dirs/{Path(args.config).stem}') / 'test'
    save_png(out / 'samples.png', image_grid(images))
    with atomic_path(out / 'samples.npz') as temporary:
        np.savez(temporary, arr_0=images)
    print(f'{len(images)} samples: {out / "samples.png"} and {out / "samples.npz"}')


def sample(model, hook, indices, batch_size: int, seed: int):
    """Sample the pictures numbered ``indices``; returns uint8 (len(indices), H, W, 3)."""
    import numpy as np
    from tqdm import tqdm

    from pixnerd_plugin.images import to_uint8
    from pixnerd_plugin.sampling.noise import draw_noise, picture_generators

    size = hook['size']
    height, width = (size, size) if isinstance(size, int) else size
    conditions = dict(hook['conditions'])
    if hasattr(model.conditioner, 'num_classes'):
        conditions = dict(label=range(model.conditioner.num_classes))
    images = [np.zeros((0, height, width, 3), np.uint8)]
    for start in tqdm(range(0, len(indices), batch_size), desc='sampling', unit='batch'):
        numbers = indices[start : start + batch_size]
        generators = picture_generators([seed + number for number in numbers])
        chosen = {key: [values[number % len(values)] for number in numbers] for key, values in conditions.items()}
        batch = model.sample(chosen, draw_noise(generators, (3, height, width)), generators=generators)
        images.append(to_uint8(batch))
    return np.concatenate(images)


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

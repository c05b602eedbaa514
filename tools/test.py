#!/usr/bin/env python
"""Draw class-balanced samples with a trained model and, given a reference, measure their quality as papers do.

Written to WORK_DIR/test: samples.npz (ADM's format: arr_0, uint8, NHWC), samples.png, and metrics.json with FID, sFID,
IS, precision and recall. Picture n has class n mod K and the noise of seed SEED + n, whatever the batch and the number
of processes. What was drawn is kept: the same command goes on where it was interrupted, and one that asks for more adds
to it.

Features come from the config's feature_extractor, by default Inception with the weights that PIXNERD_INCEPTION names.
"""

import argparse
import hashlib
import json
from pathlib import Path

import options

NUM_SHOWN = 100


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file the model was trained with')
    parser.add_argument('checkpoint', help='checkpoint of the training, or published weights; the EMA is used')
    parser.add_argument('--work-dir', help='folder to write test/ into (work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--num-samples', type=int, help='how many pictures, classes taking turns (50,000 with --reference, else 100)'
    )
    parser.add_argument('--batch-size', type=int, default=50, help='pictures sampled at once by a process (50)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first picture; the next take the next (0)')
    parser.add_argument(
        '--reference',
        metavar='DIR|NPZ',
        help="what to measure against: a folder of pictures, ADM's npz with pictures or statistics, or digits:test",
    )
    parser.add_argument(
        '--center-crop', action='store_true', help="cut the reference folder's pictures to size as ADM does"
    )
    parser.add_argument('--overwrite', action='store_true', help='throw away samples of other settings in the folder')
    options.add_compute(parser)
    options.add_imports(parser)
    options.add_config_options(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from mmengine.device import get_device
    from mmengine.dist import barrier, get_dist_info
    from mmengine.registry import init_default_scope

    import pixnerd_plugin.engine  # noqa: F401 (registers what configs name)
    from pixnerd_plugin.checkpoints import read_checkpoint
    from pixnerd_plugin.engine.config import hide_broken_torchvision, load_config
    from pixnerd_plugin.engine.processes import set_up_processes, tear_down_processes
    from pixnerd_plugin.evaluation.generate import digest_weights, image_size_of, load_model
    from pixnerd_plugin.evaluation.quality import measure, open_reference, prepare
    from pixnerd_plugin.evaluation.store import SampleStore
    from pixnerd_plugin.models.layers.packing import gains_by_packing
    from pixnerd_plugin.pipeline import fastest_dtype, resolve_dtype

    num = args.num_samples if args.num_samples is not None else 50_000 if args.reference else 100
    for name, value in (('--num-samples', num), ('--batch-size', args.batch_size)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    options.import_parts(args, args.checkpoint)
    config = load_config(args.config, args.cfg_options)  # with what it imports, which the checkpoint may need
    read_checkpoint(args.checkpoint)  # ends here if it cannot be read
    hide_broken_torchvision()
    size = image_size_of(config, args.checkpoint)
    if args.reference:
        extractor = make_extractor(config, num)
        reference = open_reference(args.reference, size, extractor, args.center_crop)
    set_up_processes(config, args.launcher)
    init_default_scope('pixnerd')
    model = load_model(config, args.checkpoint, get_device())
    if args.dtype:
        dtype = fastest_dtype(torch.device(get_device())) if args.dtype == 'auto' else resolve_dtype(args.dtype)
        print(f'computing in {str(dtype).removeprefix("torch.")} on {get_device()}')
        model.backbone.to(dtype)
    if args.reference:
        # What is wrong with it is found before hours of sampling.
        prepare(reference, extractor, args.batch_size, get_device())

    out = Path(args.work_dir or f'work_dirs/{Path(args.config).stem}') / 'test'
    conditions = all_conditions(model, config)
    run = dict(
        weights=digest_weights(model.backbone),
        sampler=model.sampler.config(),
        size=size,
        seed=args.seed,
        conditions={key: digest(values) for key, values in conditions.items()},
    )
    store = SampleStore(out, run, num, args.overwrite)
    if get_dist_info()[0] == 0:
        store.claim()
    barrier()
    if args.pack or (args.pack is None and gains_by_packing(torch.device(get_device()))):
        model.backbone.pack()
    sample(model, store, conditions, size, args.batch_size, args.seed)
    barrier()
    if get_dist_info()[0] == 0:
        store.finish()
        show(store.npz, out / 'samples.png')
    barrier()
    if args.reference:
        samples = open_samples(store.npz, num, conditions)
        results = measure(samples, reference, extractor, args.batch_size, get_device())
        if results:
            report(results, out / 'metrics.json', num, args, extractor.name)
    tear_down_processes()


def make_extractor(config, num: int):
    import os

    from pixnerd_plugin.evaluation.inception import WEIGHTS
    from pixnerd_plugin.evaluation.quality import require_enough
    from pixnerd_plugin.registry import MODELS, build

    inception = dict(type='InceptionFeatures', weights=os.environ.get('PIXNERD_INCEPTION', f'data/{WEIGHTS}'))
    extractor = build(MODELS, config.get('feature_extractor') or inception)
    require_enough(num, extractor, '--num-samples')
    return extractor


def all_conditions(model, config) -> dict:
    """What the pictures are of, in turns: every class, or the prompts of the config's sample grid."""
    from pixnerd_plugin.evaluation.generate import sample_grid_hook

    if hasattr(model.conditioner, 'num_classes'):
        return dict(label=list(range(model.conditioner.num_classes)))
    return {key: list(values) for key, values in sample_grid_hook(config)['conditions'].items()}


def digest(values: list) -> str:
    """What tells one list of conditions from another."""
    return f'{len(values)} ({hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]})'


def sample(model, store, conditions: dict, size: tuple[int, int], batch_size: int, seed: int) -> None:
    """Draw what the store lacks, this process its share."""
    from mmengine.dist import barrier, get_dist_info
    from tqdm import tqdm

    from pixnerd_plugin.evaluation.generate import draw_images

    if store.is_complete():
        return
    rank, world_size = get_dist_info()
    todo = store.missing(batch_size)
    # Before anybody writes, so that all see the same list.
    barrier()
    left = sum(map(len, todo))
    if rank == 0 and left < store.total:
        print(f'{store.total - left} of {store.total} samples are there already')
    own = todo[rank::world_size]
    with tqdm(total=sum(map(len, own)), desc='sampling', unit='picture', disable=None if rank == 0 else True) as bar:
        for numbers in own:
            chosen = {key: [values[n % len(values)] for n in numbers] for key, values in conditions.items()}
            store.write(numbers, draw_images(model, chosen, [seed + n for n in numbers], size))
            bar.update(len(numbers))


def open_samples(path: Path, num: int, conditions: dict):
    import torch

    from pixnerd_plugin.evaluation.pictures import NpzImages

    samples = NpzImages(path, num)
    if 'label' in conditions:
        samples.labels = torch.arange(num) % len(conditions['label'])
    return samples


def show(npz: Path, path: Path) -> None:
    """Write the first samples as one picture."""
    from pixnerd_plugin.evaluation.pictures import NpzImages
    from pixnerd_plugin.images import image_grid, save_png

    first = next(NpzImages(npz).batches(NUM_SHOWN)).permute(0, 2, 3, 1).numpy()
    save_png(path, image_grid(first))
    print(f'samples: {npz}, the first {len(first)} in {path}')


def report(results: dict, path: Path, num: int, args: argparse.Namespace, features: str) -> None:
    from pixnerd_plugin.formats.atomic import atomic_path

    record = dict(results, num_samples=num, seed=args.seed, reference=args.reference, features=features)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(dict(record, checkpoint=args.checkpoint), indent=1) + '\n')
    print(f'{num} samples against {args.reference}, {features} features:')
    for name, value in results.items():
        print(f'  {name:<16} {value:.4f}')


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        from pixnerd_plugin.engine.processes import fail_at_once

        with fail_at_once():
            main(arguments)

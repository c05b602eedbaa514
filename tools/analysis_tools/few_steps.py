#!/usr/bin/env python
"""Compare pictures drawn in a few steps with those of the network that was distilled.

For each number of steps: the share of the pictures that is recognised, and the Fréchet distance to real ones in the
features of a classifier of tools/train_classifier.py; of several checkpoints (seeds), one row each. Digits are
recognised by a support-vector classifier, other pictures by that of the features. Digits are grey, so how far their
channels are from their mean, of 255, is the grain of a picture. Also drawn: ten pictures a row, in one step, in two,
and by the distilled network; and those of one step rendered at four times the size. With --curve the checkpoints
(iter_N.pth) are stages of one training, and their scores are drawn over its batches; the pictures are of the last.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import options

SCALE = 4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', help='networks of mean velocities, one a seed')
    parser.add_argument('--curve', action='store_true', help='the checkpoints are stages of one training: draw a curve')
    parser.add_argument('--teacher', help='the network that was distilled, sampled with its own settings')
    parser.add_argument('--teacher-steps', type=int, help="steps of the distilled network (the checkpoint's)")
    parser.add_argument('--data', default='digits:train', help='real pictures, such as data/cifar10/test (digits)')
    parser.add_argument('--classifier', type=Path, help='of tools/train_classifier.py; without it, no distances')
    parser.add_argument('--steps', type=int, nargs='+', default=[1, 2, 4, 8], help='(1 2 4 8)')
    parser.add_argument('--num', type=int, default=500, help='pictures, classes taking turns (500)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first picture (0)')
    options.add_device(parser)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/few_steps'), help='folder for numbers and figure')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from demo_digits import enlarge, stack_rows

    from pixnerd_plugin import load_pipeline
    from pixnerd_plugin.formats.atomic import atomic_path
    from pixnerd_plugin.images import image_grid, save_png, to_uint8

    batches = [batches_of(path) for path in args.checkpoints] if args.curve else []
    drawn = batches.index(max(batches)) if batches else 0
    score = make_scorer(args.data, args.classifier)
    results, pictures, last = [], [], None
    if args.teacher:
        pipe = load_pipeline(args.teacher, device=args.device, dtype='float32')
        # The same noise as in the other rows.
        limit = load_pipeline(args.checkpoints[0]).sampler.noise_limit
        sampler = pipe.sampler.replace(noise_limit=limit, num_steps=args.teacher_steps or pipe.sampler.num_steps)
        images = draw(pipe, sampler, args)
        scores = score(images, pipe.net.grid_of(images))
        results.append(dict(checkpoint=args.teacher, sampler=f'{sampler.num_steps} guided steps', **scores))
        last = images[:10]
    for number, path in enumerate(args.checkpoints):
        pipe = load_pipeline(path, device=args.device, dtype='float32')
        for steps in args.steps:
            sampler = pipe.sampler.replace(num_steps=steps)
            images = draw(pipe, sampler, args)
            scores = score(images, pipe.net.grid_of(images))
            results.append(dict(checkpoint=path, sampler=f'{steps} step{"s" * (steps > 1)}', **scores))
            if number == drawn and steps <= 2:
                pictures.append(images[:10])
        if number == drawn:
            sampler = pipe.sampler.replace(num_steps=args.steps[0])
            _, field = pipe.sample(*first(pipe, args.seed, 10), sampler=sampler, record_field=True)
            fine = to_uint8(field.decode((pipe.size[0] * SCALE, pipe.size[1] * SCALE)))
    pictures += [] if last is None else [last]
    rows = [enlarge(image_grid(to_uint8(images), 10, gap=1), SCALE) for images in pictures]
    save_png(args.out / 'few_steps.png', stack_rows(rows))
    save_png(args.out / 'fine.png', image_grid(fine, 10, gap=SCALE))
    with atomic_path(args.out / 'few_steps.json') as temporary:
        temporary.write_text(json.dumps(results, indent=1) + '\n')
    print('| checkpoint | sampler | recognised | Fréchet distance | grain | seams |\n|---|---|---|---|---|---|')
    for row in results:
        named = (f'{row[name]:.2f}' if name in row else '-' for name in ('distance', 'grain', 'seams'))
        recognised = f'{row["recognised"]:.1%}'.replace('%', ' %')
        print(f'| {" | ".join([row["checkpoint"], row["sampler"], recognised, *named])} |')
    print(f'figures: {args.out / "few_steps.png"}, and {args.out / "fine.png"} at {SCALE} times the size')
    if args.curve:
        draw_curve(args, dict(zip(args.checkpoints, batches, strict=True)), results)


def batches_of(path: str) -> int:
    """The number of batches in the name of a checkpoint."""
    found = re.search(r'iter_(\d+)', Path(path).name)
    if found is None:
        raise ValueError(f'{path}: --curve takes the number of batches from names such as iter_400.pth')
    return int(found[1])


def draw_curve(args: argparse.Namespace, batches: dict[str, int], results: list[dict]) -> None:
    """Recognised pictures, and distances if there are some, over the batches of a training."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from pixnerd_plugin.formats.atomic import atomic_path

    titles = dict(recognised='recognised', distance='Fréchet distance')
    names = [name for name in titles if name in results[0]]
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(4.6 * len(names), 3.2), layout='constrained', squeeze=False
    )
    order = sorted(batches, key=batches.__getitem__)
    for panel, name in zip(panels[0], names, strict=True):
        for steps in dict.fromkeys(row['sampler'] for row in results if row['checkpoint'] in batches):
            found = {row['checkpoint']: row[name] for row in results if row['sampler'] == steps}
            panel.plot([batches[path] for path in order], [found[path] for path in order], marker='o', label=steps)
        for row in results:
            if row['checkpoint'] == args.teacher:
                panel.axhline(row[name], color='C7', linestyle='--', label=row['sampler'])
        panel.set(xlabel='batches', title=titles[name], yscale='log' if name == 'distance' else 'linear')
        panel.grid(alpha=0.3)
        panel.legend()
    with atomic_path(args.out / 'curve.png') as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    print(f'curve: {args.out / "curve.png"}')


def first(pipe, seed: int, count: int) -> tuple[list[int], list[int]]:
    """Labels and seeds of the first pictures."""
    return [index % pipe.net.num_classes for index in range(count)], list(range(seed, seed + count))


def draw(pipe, sampler, args: argparse.Namespace):
    """Pictures ``(num, 3, H, W)``, a hundred at once."""
    import torch

    labels, seeds = first(pipe, args.seed, args.num)
    parts = [slice(start, start + 100) for start in range(0, args.num, 100)]
    return torch.cat([pipe.sample(labels[part], seeds[part], sampler=sampler) for part in parts])


def make_scorer(data: str, classifier: Path | None):
    """A function from pictures, classes taking turns, to their scores."""
    import torch
    from demo_digits import recognise

    from pixnerd_plugin.evaluation.classifier import ClassifierFeatures
    from pixnerd_plugin.evaluation.metrics import Statistics, frechet_distance
    from pixnerd_plugin.evaluation.pictures import open_images
    from pixnerd_plugin.functional.seams import seam_ratio
    from pixnerd_plugin.images import to_uint8

    is_digits = data.startswith('digits:')
    if classifier is None and not is_digits:
        raise ValueError(f'{data} are no digits; give the --classifier that recognises them')
    features = None if classifier is None else ClassifierFeatures(classifier)
    if features is not None:
        pool = torch.cat([features(images).pool for images in open_images(data).batches(500)])
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
        real, halves = Statistics.of(pool), pool[order].chunk(2)
        print(f'{data}: one half is {frechet_distance(*map(Statistics.of, halves)):.2f} from the other')

    def score(images, grid: tuple[int, int]) -> dict[str, float]:
        pixels = to_uint8(images)
        scores = dict(seams=seam_ratio(images, grid)) if min(grid) > 1 else {}
        if is_digits:
            scores['recognised'] = float(recognise(pixels, [index % 10 for index in range(len(pixels))]))
            scores['grain'] = float(abs(pixels - pixels.mean(-1, keepdims=True)).mean())
        if features is not None:
            found = features(torch.from_numpy(pixels).movedim(-1, 1))
            scores['distance'] = frechet_distance(Statistics.of(found.pool), real)
            if not is_digits:
                labels = torch.arange(len(pixels)) % features.num_classes
                scores['recognised'] = (found.logits.argmax(1) == labels).float().mean().item()
        return scores

    return score


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

#!/usr/bin/env python
"""Draw with the digits model that `make demo-classes` trains: a grid, finer renderings, the loss curve, and a score."""

import argparse
import json
from pathlib import Path

NUM_SCORED = 500
SCALES = (1, 2, 4)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits'), help='folder of the training')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first picture (0)')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from pixnerd_plugin import load_pipeline
    from pixnerd_plugin.engine.resume import find_checkpoint
    from pixnerd_plugin.images import image_grid, save_png, to_uint8

    path = find_checkpoint(args.work_dir)
    if path is None:
        raise FileNotFoundError(f'no checkpoint in {args.work_dir}; train one first: make demo-classes')
    pipe = load_pipeline(path, device='cpu')
    labels = [index % 10 for index in range(NUM_SCORED)]
    seeds = range(args.seed, args.seed + NUM_SCORED)
    print(f'Sampling {NUM_SCORED} digits in {pipe.sampler.num_steps} steps.')
    pixels = to_uint8(pipe.sample(labels, seeds))
    grid, zoom, curve = (args.work_dir / name for name in ('grid.png', 'zoom.png', 'loss.png'))
    save_png(grid, enlarge(image_grid(pixels[:100], 10), 2))

    # Ten digits as functions of the plane: one sampling run, rendered at each scale, shown at the same width.
    _, field = pipe.sample(labels[:10], seeds[:10], record_field=True)
    height, width = pipe.size
    rows = []
    for scale in SCALES:
        fine = to_uint8(field.decode((height * scale, width * scale)))
        rows.append(enlarge(image_grid(fine, 10, gap=scale), max(SCALES) // scale))
    save_png(zoom, stack_rows(rows))
    draw_loss(args.work_dir, curve)
    for what, file in (('digits', grid), (f'at {SCALES} times the size', zoom), ('loss', curve)):
        print(f'{what}: {file}')
    print(f'recognised: {recognise(pixels, labels):.1%} of {NUM_SCORED}'.replace('%', ' %'))


def enlarge(pixels, factor: int):
    """Repeat every pixel of (…, H, W, 3), so that a viewer shows them as they are."""
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def stack_rows(rows: list):
    import numpy as np

    gap = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def recognise(pixels, labels) -> float:
    """Share of the pictures that a classifier trained on real digits takes for what they were asked to be.

    Raises:
        ValueError: if the classifier itself recognises less than 96 % of held-out real digits.
    """
    import numpy as np
    from sklearn.svm import SVC

    from pixnerd_plugin.datasets import DigitsDataset

    def features(images):
        """Mean grey of 8x8 cells, the resolution of the originals: (N, 64) in [0, 16]."""
        grey = np.asarray(images, np.float32).mean(-1) * (16 / 255)
        side = grey.shape[1] // 8
        return grey.reshape(-1, 8, side, 8, side).mean((2, 4)).reshape(-1, 64)

    def real(split):
        dataset = DigitsDataset(size=pixels.shape[1], split=split)
        digits = [dataset[i] for i in range(len(dataset))]
        return features([digit['img'] for digit in digits]), [digit['label'] for digit in digits]

    classifier = SVC(gamma=0.001, C=10).fit(*real('train'))
    accuracy = classifier.score(*real('test'))
    if accuracy < 0.96:
        raise ValueError(f'the classifier recognises only {accuracy:.1%} of held-out real digits; it must reach 96 %')
    print(f'The classifier recognises {accuracy:.1%} of held-out real digits.')
    return classifier.score(features(pixels), labels)


def draw_loss(work_dir: Path, path: Path, title: str = 'PixNerd on handwritten digits') -> None:
    """Draw the loss of all runs logged in ``work_dir``, the later one where a resumed run repeats a step."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    from pixnerd_plugin.formats.atomic import atomic_path

    losses = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if 'loss_flow' in entry:
                losses[entry['step']] = entry['loss_flow']
    steps = sorted(losses)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout='constrained')
    axes.plot(steps, [losses[step] for step in steps])
    axes.set(xlabel='step', ylabel='flow matching loss', yscale='log', title=title)
    axes.grid(alpha=0.3, which='both')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


if __name__ == '__main__':
    arguments = parse_args()
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

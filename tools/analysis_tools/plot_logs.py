#!/usr/bin/env python
"""Compare training runs: losses apart and by time, gradient norm, learning rate, throughput; dashed: held out.

Each RUN is a work folder (all its starts are joined) or one scalars.json, with a label before it if you like:

  python tools/analysis_tools/plot_logs.py work_dirs/pixnerd_l16 baseline=work_dirs/baseline_l16 --out compare.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TITLES = {
    'loss_flow': 'flow matching loss',
    'loss_repa': 'alignment loss (REPA)',
    'error': 'error of the mean velocity (MeanFlow)',
    'grad_norm': 'gradient norm',
    'lr': 'learning rate',
    'images_per_second': 'pictures a second',
    'data_wait': 'share of time waiting for data',
    'mfu': 'model FLOPs utilisation',
    'skipped_steps': 'steps left out',
    'val/frechet_distance': 'Fréchet distance, held out (dotted: real pictures)',
}
LOGARITHMIC = ('loss_flow', 'error', 'grad_norm', 'val/frechet_distance')
HELD_OUT = 'val/'
VALIDATED = ('val/loss_flow', 'val/frechet_distance', 'val/frechet_floor')
FLOOR = {'val/frechet_distance': 'val/frechet_floor'}
BY_TIME = '_by_time/'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='[LABEL=]RUN', help='work folder or scalars.json')
    parser.add_argument('--out', type=Path, default=Path('logs.png'), help='figure, .png, .pdf or .svg (logs.png)')
    parser.add_argument('--keys', nargs='+', help=f'scalars to draw (those of {", ".join(TITLES)} that vary)')
    parser.add_argument('--smooth', type=int, default=1, help='log lines to average over (1)')
    args = parser.parse_args()
    if args.smooth < 1:
        parser.error('--smooth must be at least 1')
    return args


def main(args: argparse.Namespace) -> None:
    from pixnerd_plugin.engine.logs import read_scalars

    runs = {}
    for text in args.runs:
        label, path = text.split('=', 1) if '=' in text and not Path(text).exists() else (None, text)
        label = label or (Path(path).name if Path(path).is_dir() else path)
        if label in runs:
            raise ValueError(f'two runs are called {label}; give them labels: LABEL={path}')
        runs[label] = read_scalars(path)
    known = {key for steps in runs.values() for entry in steps.values() for key in entry}
    if absent := [key for key in args.keys or () if key not in known]:
        raise ValueError(f'no run has logged {absent[0]}; there are: {", ".join(sorted(known))}')
    keys = args.keys or [key for key in TITLES if key in known and varies(runs, key)]
    terms = {key.split(BY_TIME)[0].removeprefix(HELD_OUT) for key in known if BY_TIME in key}
    by_time = [] if args.keys else sorted(terms)
    draw(runs, keys, by_time, args.smooth, args.out)
    for label, steps in runs.items():
        print(f'{label}: {summary(steps)}')
    print(f'figure: {args.out}')


def varies(runs, key: str) -> bool:
    return len({entry[key] for steps in runs.values() for entry in steps.values() if key in entry}) > 1


def series(steps, key: str, smooth: int) -> tuple[list[int], list[float]]:
    """Iterations and running means of one scalar."""
    points = [(step, entry[key]) for step, entry in steps.items() if key in entry]
    values = [value for _, value in points]
    means = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - smooth) : i + 1])]
    return [step for step, _ in points], means


def profile(steps, term: str) -> tuple[list[float], list[float]]:
    """Loss by time, averaged over the last tenth of a run's lines that have it."""
    lines = [entry for entry in steps.values() if any(key.startswith(term + BY_TIME) for key in entry)]
    last = lines[-max(1, len(lines) // 10) :]
    bins: dict[float, list[float]] = {}
    for entry in last:
        for key, value in entry.items():
            if key.startswith(term + BY_TIME):
                bins.setdefault(float(key.rsplit('/', 1)[1]), []).append(value)
    times = sorted(bins)
    return times, [sum(bins[time]) / len(bins[time]) for time in times]


def summary(steps) -> str:
    last = {key: value for entry in steps.values() for key, value in entry.items()}
    names = ('loss_flow', 'loss_repa', 'images_per_second', 'data_wait', 'mfu', *VALIDATED)
    names = [name for name in names if name in last]
    return f'{max(steps):,} iterations; last ' + ', '.join(f'{name} {last[name]:.4g}' for name in names)


def draw(runs, keys: list[str], by_time: list[str], smooth: int, path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    from pixnerd_plugin.formats.atomic import atomic_path

    panels = len(keys) + len(by_time)
    columns = min(3, panels)
    rows = -(-panels // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), layout='constrained', squeeze=False)
    axes = list(grid.flat)
    for panel, key in zip(axes, keys, strict=False):
        for label, steps in runs.items():
            (line,) = panel.plot(*series(steps, key, smooth), label=label, lw=1)
            style = dict(color=line.get_color(), lw=1)
            panel.plot(*series(steps, HELD_OUT + key, 1), 'o--', ms=3, **style)
            if key in FLOOR:
                panel.plot(*series(steps, FLOOR[key], 1), ':', **style)
        panel.set(title=TITLES.get(key, key), xlabel='iteration', yscale='log' if key in LOGARITHMIC else 'linear')
    for panel, term in zip(axes[len(keys) :], by_time, strict=False):
        for label, steps in runs.items():
            (line,) = panel.plot(*profile(steps, term), 'o-', label=label, lw=1, ms=3)
            panel.plot(*profile(steps, HELD_OUT + term), 'o--', color=line.get_color(), lw=1, ms=3)
        panel.set(title=f'{TITLES.get(term, term)} by time, last tenth', xlabel='t (0 noise, 1 image)', xlim=(0, 1))
    for panel in axes[:panels]:
        panel.grid(alpha=0.3)
    for panel in axes[panels:]:
        panel.remove()
    axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == '__main__':
    arguments = parse_args()
    sys.path.insert(0, str(ROOT))
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

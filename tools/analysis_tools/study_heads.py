#!/usr/bin/env python
"""Which goes with which? Heads, predictions and loss terms crossed, in patches of several sizes, at equal compute.

At one patch size every cell gets the same FLOPs of training, which no timing on a busy machine changes; the number of
steps follows. Each trained network draws pictures, which a classifier scores. An interrupted study goes on where it
stopped.
"""

import argparse
import hashlib
import itertools
import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))
import options
from analysis_tools.study_runs import claim, new_figure, read, run_folder, run_options, save_figure, train_classifier

# The gates of DeCo's head begin at zero, and in short trainings it needs a larger rate than the transformer (docs/
# heads_and_objectives.md has its figures at the common one).
DECO_RATE = dict(custom_keys={'backbone.head': dict(lr_mult=8.0)})
HEADS = dict(
    field={},
    DeCo={
        'model.backbone.head': dict(_delete_=True, type='DeCoHead', width=16, depth=3),
        'optim_wrapper.paramwise_cfg': DECO_RATE,
    },
    linear={'model.backbone.head': dict(_delete_=True, type='LinearHead')},
)
PREDICTIONS = ('velocity', 'image')
TERMS = dict(without={}, frequency={'model.loss.terms': [dict(type='FrequencyLoss', weight=1.0, quality=85)]})


class Part(NamedTuple):
    """Some of a study's runs: all that its values make."""

    patch: int
    teraflops: float
    seeds: tuple[int, ...]
    terms: tuple[str, ...] = tuple(TERMS)
    heads: tuple[str, ...] = tuple(HEADS)
    predictions: tuple[str, ...] = PREDICTIONS


# The runs of docs/heads_and_objectives.md, by the name of the config.
DOCUMENTED = dict(
    digits_heads=(
        Part(16, 0.6, (0,)),
        Part(16, 0.6, (1,), ('without',), ('field', 'DeCo')),
        Part(16, 0.6, (1,), ('without',), ('linear',), ('image',)),
        Part(16, 0.6, (2,), ('without',), ('field',), ('velocity',)),
        Part(8, 2.2, (0,)),
        Part(4, 8.0, (0,), ('without',), ('field', 'linear')),
    ),
    cifar10_heads=(Part(8, 1.5, (0,)), Part(8, 1.5, (1,), ('without',), ('field',))),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='mm_configs/ablations/digits_heads.py', help='network and data (digits)')
    parser.add_argument('--patches', type=int, nargs='+', default=[4, 8, 16], help='patch sizes (4 8 16)')
    parser.add_argument('--heads', nargs='+', choices=HEADS, default=list(HEADS))
    parser.add_argument('--predictions', nargs='+', choices=PREDICTIONS, default=list(PREDICTIONS))
    parser.add_argument('--terms', nargs='+', choices=TERMS, default=list(TERMS), help='loss terms (both)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='one training each (0 1 2)')
    parser.add_argument(
        '--teraflops',
        type=float,
        nargs='+',
        default=[1.0],
        help='operations of training, in 10^12, of every run; one number, or one for each patch size (1)',
    )
    parser.add_argument(
        '--documented',
        action='store_true',
        help='the runs of docs/heads_and_objectives.md; other options that choose runs are then ignored',
    )
    parser.add_argument('--samples', type=int, default=300, help='pictures drawn to score a run (300)')
    parser.add_argument('--runs', type=options.numbers(1), help='stop after so many trainings (none is left out)')
    parser.add_argument('--classifier', type=Path, help='to score; by default OUT/classifier.safetensors, made once')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/heads'), help='folder for runs and figure')
    parser.add_argument('--only-draw', action='store_true', help='draw what is there and train nothing')
    parser.add_argument(
        '--beside', type=Path, nargs='+', default=[], help="folders of other studies, to draw beside OUT's"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import pixnerd_plugin.engine  # noqa: F401 (registers what configs name)
    from pixnerd_plugin.engine.config import hide_broken_torchvision, load_config
    from pixnerd_plugin.evaluation import study

    hide_broken_torchvision()
    if not args.only_draw:
        config = load_config(args.config)
        contents = hashlib.sha256(config.pretty_text.encode()).hexdigest()[:12]
        parts = parts_of(args)
        budgets = {part.patch: part.teraflops for part in parts}
        settings = {'--config': f'{args.config} (contents {contents})', '--samples': args.samples}
        settings |= {f'--teraflops at patch {patch}': budget for patch, budget in budgets.items()}
        claim(args.out, {**settings, '--classifier': str(args.classifier)})
        classifier = args.classifier or args.out / 'classifier.safetensors'
        if not classifier.is_file():
            train_classifier(config, classifier)
        scorer = study.make_scorer(config, classifier, args.samples)
        study.save_result(args.out / 'floor.json', scorer.floor)
        left = [(seed, cell) for seed, cell in cells_of(parts) if not result_path(args.out, cell, seed).is_file()]
        for seed, cell in left[: args.runs]:
            run(args, config, classifier, scorer, cell, seed, budgets[cell[0]])
        print(f'{max(0, len(left) - (args.runs or len(left)))} runs are left')
    draw(args.out, args.beside)


def parts_of(args: argparse.Namespace) -> list[Part]:
    """What the options ask for.

    Raises:
        ValueError: if --documented is given with a config that the page has no runs of, or as :func:`budgets_of`.
    """
    if not args.documented:
        budgets = budgets_of(args.patches, args.teraflops)
        shared = [tuple(values) for values in (args.seeds, args.terms, args.heads, args.predictions)]
        return [Part(patch, teraflops, *shared) for patch, teraflops in budgets.items()]
    name = Path(args.config).stem
    if name not in DOCUMENTED:
        raise ValueError(f'--documented knows the configs {", ".join(DOCUMENTED)}, and not {name}')
    return list(DOCUMENTED[name])


def cells_of(parts: list[Part]) -> list[tuple[int, list]]:
    """Seed and cell of every run: one seed of everything before the next of anything, so that a part compares too."""
    runs = []
    for seed in dict.fromkeys(itertools.chain.from_iterable(part.seeds for part in parts)):
        for part in parts:
            if seed in part.seeds:
                cells = itertools.product([part.patch], part.heads, part.predictions, part.terms)
                runs += [(seed, list(cell)) for cell in cells]
    return runs


def budgets_of(patches: list[int], teraflops: list[float]) -> dict[int, float]:
    """The operations of a run at each patch size.

    Raises:
        ValueError: if there is neither one number nor one for each, or one is not above 0.
    """
    if len(teraflops) not in (1, len(patches)) or min(teraflops) <= 0:
        raise ValueError(
            f'--teraflops {" ".join(map(str, teraflops))}: give one number above 0, or one for each of '
            f'--patches {" ".join(map(str, patches))}'
        )
    return dict(zip(patches, teraflops * (len(patches) // len(teraflops)), strict=True))


def name_of(cell: list) -> str:
    patch, head, prediction, term = cell
    return f'patch {patch}, {head}, {prediction}, {term}'


def result_path(out: Path, cell: list, seed: int) -> Path:
    return run_folder(out, name_of(cell), seed) / 'result.json'


def entries_of(config, cell: list) -> dict:
    """The config entries that make a cell."""
    patch, head, prediction, term = cell
    teacher = {} if config.model.loss.teacher is None else {'model.loss.teacher.patch_size': patch}
    return {
        'model.backbone.patch_size': patch,
        'model.backbone.prediction': prediction,
        **HEADS[head],
        **TERMS[term],
        **teacher,
    }


def run(args, config, classifier: Path, scorer, cell: list, seed: int, teraflops: float) -> None:
    """Train and measure one cell in one seed."""
    from pixnerd_plugin.evaluation import study

    entries = entries_of(config, cell)
    iters = steps_of(args.config, {**run_options(config, classifier, None), **entries}, teraflops)
    path = result_path(args.out, cell, seed)
    entries = {**run_options(config, classifier, iters), **entries}
    print(f'Training {name_of(cell)}, seed {seed}, {iters} steps: {path.parent}', flush=True)
    checkpoint = study.train_variant(args.config, entries, path.parent, seed)
    result = study.measure_variant(args.config, entries, checkpoint, scorer, args.samples)
    keys = dict(zip(('patch', 'head', 'prediction', 'term'), cell, strict=True))
    study.save_result(path, dict(keys, seed=seed, steps=iters, samples=args.samples, **result))


def steps_of(path: str, entries: dict, teraflops: float) -> int:
    """How many steps of training, to the next ten, are ``teraflops`` (at least 20)."""
    from pixnerd_plugin.engine.config import load_config
    from pixnerd_plugin.evaluation.study import training_gflops

    config = load_config(path, entries)
    gflops = config.train_dataloader.batch_size * training_gflops(config)
    return max(20, 10 * round(100 * teraflops / gflops))


def draw(out: Path, beside: list[Path]) -> None:
    """Print the tables and write the figure, from the results that are there."""
    panels = []
    for folder in (out, *beside):
        results = [read(path) for path in sorted(folder.glob('*/seed_*/result.json'))]
        if not results:
            print(f'no results in {folder}')
            continue
        name = Path(read(folder / 'settings.json')['--config'].split(' (contents')[0]).stem.removesuffix('_heads')
        floor = read(folder / 'floor.json')
        print(f'\n{name}\n')
        print_cells(results, floor)
        # What one factor changes may depend on another: predicting the image helps one head and not the next.
        print_effects(results, 'head', list(HEADS), within='prediction')
        print_effects(results, 'prediction', list(PREDICTIONS), within='head')
        print_effects(results, 'term', list(TERMS))
        for patch in sorted({r['patch'] for r in results}):
            panels.append((f'{name}, patch {patch}', [r for r in results if r['patch'] == patch], floor))
    if panels:
        draw_figure(out / 'heads_and_objectives.png', panels)


def groups_of(results: list[dict]) -> dict[tuple, list[dict]]:
    """The results of each cell: patch size, head, prediction, term."""
    order = {name: index for index, name in enumerate([*HEADS, *PREDICTIONS, *TERMS])}
    keys = {(r['patch'], r['head'], r['prediction'], r['term']) for r in results}
    ordered = sorted(keys, key=lambda key: (key[0], *(order[name] for name in key[1:])))
    return {key: [r for r in results if (r['patch'], r['head'], r['prediction'], r['term']) == key] for key in ordered}


def print_cells(results: list[dict], floor: dict) -> None:
    print('| patch | head | predicts | frequency term | seeds | steps | Fréchet distance | recognised |')
    print('|---|---|---|---|---|---|---|---|')
    for (patch, head, prediction, term), group in groups_of(results).items():
        distances = [r['distance'] for r in group]
        spread = f' ({min(distances):.2f} to {max(distances):.2f})' if len(group) > 1 else ''
        print(
            f'| {patch} | {head} | {prediction} | {"yes" if term == "frequency" else "no"} | {len(group)} | '
            f'{group[0]["steps"]} | {statistics.mean(distances):.2f}{spread} | {share(group)} |'
        )
    print(f'| *real training pictures* | | | | | | {floor["distance"]:.2f} | {100 * floor["accuracy"]:.1f} % |\n')


def share(group: list[dict]) -> str:
    """Recognised pictures of a cell in percent, and Wilson's 95 % interval for one seed, the range for several."""
    values = [r['accuracy'] for r in group]
    mean = statistics.mean(values)
    low, high = (min(values), max(values)) if len(values) > 1 else wilson(mean, group[0]['samples'])
    return f'{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})'


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share ``p`` of ``n``."""
    middle, width = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)


def print_effects(results: list[dict], factor: str, values: list[str], within: str | None = None) -> None:
    """What each value of a factor changes against the ones before it, everything else equal.

    The mean over pairs of runs and its 95 % interval: for each patch size, and each value of the factor ``within``.
    """
    others = [name for name in ('patch', 'head', 'prediction', 'term', 'seed') if name != factor]
    groups: dict[tuple, dict[tuple, dict]] = {}
    for result in results:
        group = groups.setdefault((result['patch'], result[within] if within else ''), {})
        group.setdefault(tuple(result[name] for name in others), {})[result[factor]] = result
    for (patch, value), keyed in sorted(groups.items()):
        for first, second in itertools.combinations(values, 2):
            pairs = [pair for pair in keyed.values() if first in pair and second in pair]
            if len(pairs) < 2:
                continue
            ratios = [math.log(pair[second]['distance'] / pair[first]['distance']) for pair in pairs]
            (low, mean, high) = (math.exp(end) for end in interval(ratios))
            share = interval([100 * (pair[second]['accuracy'] - pair[first]['accuracy']) for pair in pairs])
            print(
                f'patch {patch}, {value + ", " if value else ""}{second} against {first}, {len(pairs)} pairs: '
                f'distance times {mean:.2f} ({low:.2f} to {high:.2f}), '
                f'recognised {share[1]:+.1f} points ({share[0]:+.1f} to {share[2]:+.1f})'
            )


# Student's t for 95 %, two-sided, by degrees of freedom; from the last on it hardly falls.
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the 95 % interval of a mean."""
    mean = statistics.mean(values)
    width = T[min(len(values) - 1, len(T)) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean - width, mean, mean + width


def draw_figure(path: Path, panels: list[tuple[str, list[dict], dict]]) -> None:
    """A row for each measure, a column for each patch size of each study, and a dot for each run."""
    pyplot, figure, axes = new_figure(2, len(panels))
    colours = dict(zip(HEADS, ('tab:blue', 'tab:orange', 'tab:green'), strict=True))
    for column, (title, results, floor) in enumerate(panels):
        groups = groups_of(results)
        for row, (measure, name) in enumerate((('distance', 'Fréchet distance'), ('accuracy', 'recognised'))):
            panel = axes[row][column]
            for x, ((_, head, prediction, term), group) in enumerate(groups.items()):
                colour = colours[head]
                # Runs of a cell side by side, each share with its interval.
                places = [x + 0.2 * (index - (len(group) - 1) / 2) for index in range(len(group))]
                panel.scatter(
                    places,
                    [r[measure] for r in group],
                    marker='o' if prediction == 'velocity' else 's',
                    edgecolors=colour,
                    facecolors=colour if term == 'without' else 'white',
                    zorder=3,
                )
                if measure == 'accuracy':
                    ends = [wilson(r['accuracy'], r['samples']) for r in group]
                    panel.vlines(places, *zip(*ends, strict=True), colors=colour, linewidth=1)
            panel.axhline(floor[measure], color='grey', linestyle=':')
            labels = [f'{head}, {what}' + (', freq.' if term == 'frequency' else '') for _, head, what, term in groups]
            panel.set_xticks(range(len(labels)), labels if row else [''] * len(labels), rotation=90, fontsize=7)
            panel.set(title=f'{name}, {title}', yscale='log' if measure == 'distance' else 'linear')
    save_figure(path, pyplot, figure)


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

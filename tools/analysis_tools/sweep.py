#!/usr/bin/env python
"""Compare variants of a small network, each trained in several seeds: the paper's ablations on one CPU core.

head: the neural field against the linear head, at equal parameters and at equal compute, in patches of several sizes
(paper Fig. 6). normalize, width, depth, coordinates: the field's design (Fig. 7a to d). guidance, solver: sampling
from one trained network (Fig. 7e and f). optimizer: Muon against AdamW, at equal time. An interrupted sweep goes on
where it stopped.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import options
from analysis_tools.study_runs import (
    claim,
    length_options,
    new_figure,
    read,
    run_folder,
    run_options,
    save_figure,
    train_classifier,
)

AXES = ('head', 'normalize', 'width', 'depth', 'coordinates', 'optimizer', 'guidance', 'solver')
FIELD = 'model.backbone.head'
RATES = (0.001, 0.002, 0.004, 0.008)
# CPU time of a step with AdamW over one with Muon, on the digits: the shorter runs of Muon take as long.
MUON_STEPS = 0.82


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('axes', nargs='+', choices=AXES, metavar='AXIS', help=', '.join(AXES))
    parser.add_argument('--config', default='mm_configs/ablations/digits_small.py', help='network and data (digits)')
    parser.add_argument('--patches', type=int, nargs='+', default=[8, 16], help='patch sizes of the axis head (8 16)')
    parser.add_argument('--rates', type=float, nargs='+', default=RATES, help='learning rates of the axis optimizer')
    parser.add_argument(
        '--muon-steps',
        type=float,
        default=MUON_STEPS,
        help='steps of Muon that take as long as one of AdamW (0.82, as on the digits)',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], help='one training each (0 1)')
    parser.add_argument('--iters', type=options.numbers(2), help="training steps (the config's)")
    parser.add_argument(
        '--checkpoint',
        type=Path,
        help='network of --config to sample from (guidance, solver); by default one is trained',
    )
    parser.add_argument('--samples', type=int, default=300, help='pictures drawn to score a variant (300)')
    parser.add_argument(
        '--classifier', type=Path, help='to score them; by default OUT/classifier.safetensors, trained if it is absent'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/sweep'), help='folder for runs and figures')
    parser.add_argument('--only-draw', action='store_true', help='draw what is there and train nothing')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import pixnerd_plugin.engine  # noqa: F401 (registers what configs name)
    from pixnerd_plugin.engine.config import hide_broken_torchvision, load_config
    from pixnerd_plugin.evaluation import study

    hide_broken_torchvision()
    config = load_config(args.config)
    if config.model.backbone.head.type != 'NeuralFieldHead':
        raise ValueError(f'{args.config} has a {config.model.backbone.head.type}; the sweeps vary a NeuralFieldHead')
    if not args.only_draw:
        claim_folder(args, config)
    classifier = args.classifier or args.out / 'classifier.safetensors'
    if not classifier.is_file() and not args.only_draw:
        train_classifier(config, classifier)
    trained = {
        axis: trained_variants(axis, config, args.patches, args.iters, args.rates, args.muon_steps)
        for axis in args.axes
        if axis not in ('guidance', 'solver')
    }
    if not args.only_draw:
        scorer = study.make_scorer(config, classifier, args.samples)
        study.save_result(args.out / 'floor.json', scorer.floor)
        # One seed of everything before the next seed of anything: a sweep cut short still compares.
        for seed in args.seeds:
            for variants in trained.values():
                for name, entries in variants.items():
                    run_variant(args, config, classifier, scorer, name, entries, seed)
        for axis in args.axes:
            if axis not in trained:
                run_sampling(args, config, classifier, scorer, axis)
    for axis in args.axes:
        draw(args.out, axis, list(trained.get(axis, sampling_variants(axis, config))))


def claim_folder(args: argparse.Namespace, config) -> None:
    """Write down what this sweep measures; see :func:`claim`."""
    contents = hashlib.sha256(config.pretty_text.encode()).hexdigest()[:12]
    settings = {
        '--config': f'{args.config} (contents {contents})',
        '--iters': args.iters or config.train_cfg.max_iters,
        '--samples': args.samples,
        '--classifier': str(args.classifier),
    }
    if 'optimizer' in args.axes:
        settings['--muon-steps'] = args.muon_steps
    if {'guidance', 'solver'} & set(args.axes):
        settings['--checkpoint'] = str(args.checkpoint)
    claim(args.out, settings)


def trained_variants(
    axis: str, config, patches: list[int], iters: int | None = None, rates=RATES, muon_steps: float = MUON_STEPS
) -> dict[str, dict]:
    """Names of an axis' variants, and the config entries that make each."""
    head = config.model.backbone.head
    if axis == 'head':
        variants = {}
        for patch in patches:
            entries = {'model.backbone.patch_size': patch}
            if config.model.loss.teacher is not None:
                entries['model.loss.teacher.patch_size'] = patch
            base = config.copy()
            base.merge_from_dict(entries)
            variants[f'field, patch {patch}'] = entries
            for name, measure in (('equal parameters', count_parameters), ('equal compute', count_flops)):
                variants[f'linear, {name}, patch {patch}'] = {**entries, **match_linear(base, measure)}
        return variants
    if axis == 'optimizer':
        rate = 'optim_wrapper.optimizer.lr'
        shorter = length_options(config, max(2, round(muon_steps * (iters or config.train_cfg.max_iters))))
        muon = {
            'optim_wrapper.constructor': 'MuonConstructor',
            'optim_wrapper.optimizer': dict(_delete_=True, type='MuonAdamW'),
        }
        # The rate in its own option, because an option with _delete_ forgets what others set.
        return {f'AdamW, rate {lr}': {rate: lr} for lr in rates} | {
            f'Muon, rate {lr}': {**shorter, **muon, rate: lr} for lr in rates
        }
    values = dict(
        normalize=['fc1', 'fc1_fc2', 'fc1_fc2_output'],
        # The paper's 36, 64 and 72.
        width=[round(head.width * share / 64) for share in (36, 64, 72)],
        depth=[1, 2, 4],
        coordinates=['dct', 'sincos'],
    )[axis]
    return {f'{axis} {value}': {f'{FIELD}.{axis}': value} for value in values}


def sampling_variants(axis: str, config) -> list[dict]:
    """The samplers of an axis that needs no training."""
    base = dict(config.model.sampler)
    if axis == 'guidance':
        return [dict(base, guidance_scale=scale) for scale in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
    common = {key: value for key, value in base.items() if key not in ('type', 'order', 'num_steps')}
    solvers = [dict(type='EulerFlowSampler'), *(dict(type='AdamsFlowSampler', order=order) for order in (2, 4))]
    return [dict(solver, **common, num_steps=steps) for solver in solvers for steps in (5, 10, 20, 50)]


def match_linear(config, measure) -> dict:
    """The entries that put a linear head in place of the field and spend what that frees on the transformer.

    Blocks are added as the paper does, then the hidden width of all is set so that ``measure`` is the field's.
    """
    target = measure(config)

    def cost(depth: int, hidden: int) -> float:
        changed = config.copy()
        changed.merge_from_dict({'model.backbone.depth': depth, 'model.backbone.mlp_hidden': hidden})
        changed.model.backbone.head = dict(type='LinearHead')
        return measure(changed)

    # Parameters and FLOPs are ``a + depth (b + c hidden)``, exactly.
    usual = 8 * config.model.backbone.dim // 3
    one, two, wider = cost(1, usual), cost(2, usual), cost(1, usual + 1)
    c = wider - one
    b = two - one - c * usual
    a = one - b - c * usual
    depth = max(1, round((target - a) / (b + c * usual)))
    hidden = round(((target - a) / depth - b) / c)
    return {
        f'{FIELD}._delete_': True,
        f'{FIELD}.type': 'LinearHead',
        'model.backbone.depth': depth,
        'model.backbone.mlp_hidden': hidden,
    }


def count_parameters(config) -> float:
    import torch

    from pixnerd_plugin.registry import MODELS

    with torch.device('meta'):
        return sum(p.numel() for p in MODELS.build(config.model.backbone).parameters())


def count_flops(config) -> float:
    from pixnerd_plugin.evaluation.study import training_gflops

    return training_gflops(config)


def run_variant(args, config, classifier, scorer, name: str, entries: dict, seed: int) -> None:
    """Train and measure one variant in one seed, unless its result is there."""
    import time

    from pixnerd_plugin.evaluation import study

    work_dir = run_folder(args.out, name, seed)
    if (work_dir / 'result.json').is_file():
        return
    entries = {**run_options(config, classifier, args.iters), **entries}
    print(f'Training {name}, seed {seed}: {work_dir}', flush=True)
    start = time.process_time()
    checkpoint = study.train_variant(args.config, entries, work_dir, seed)
    seconds = time.process_time() - start
    result = study.measure_variant(args.config, entries, checkpoint, scorer, args.samples)
    study.save_result(work_dir / 'result.json', dict(name=name, seed=seed, cpu_seconds=seconds, **result))


def run_sampling(args, config, classifier, scorer, axis: str) -> None:
    """Score each sampler of an axis on the unchanged network, in the first seed."""
    from pixnerd_plugin.engine.config import load_config
    from pixnerd_plugin.evaluation import study
    from pixnerd_plugin.evaluation.generate import image_size_of, load_model
    from pixnerd_plugin.registry import MODELS

    entries, seed = run_options(config, classifier, args.iters), args.seeds[0]
    checkpoint = args.checkpoint or study.train_variant(args.config, entries, run_folder(args.out, 'base', seed), seed)
    model = load_model(load_config(args.config, entries), str(checkpoint), 'cpu')
    for sampler in sampling_variants(axis, config):
        path = args.out / axis / f'{sampler_name(axis, sampler)}.json'
        if not path.is_file():
            model.sampler = MODELS.build(dict(sampler))
            print(f'Sampling with {path.stem}', flush=True)
            scores = study.score_samples(model, scorer, args.samples, image_size_of(config))
            study.save_result(path, dict(name=path.stem, sampler=sampler, **scores))


def sampler_name(axis: str, sampler: dict) -> str:
    if axis == 'guidance':
        return f'guidance_{sampler["guidance_scale"]}'
    return f'{sampler["type"].removesuffix("FlowSampler")}{sampler.get("order", "")}_{sampler["num_steps"]}'


def draw(out: Path, axis: str, variants: list) -> None:
    """Print the table of an axis and write its figure, from the results that are there."""
    if axis in ('guidance', 'solver'):
        results = [read(out / axis / f'{sampler_name(axis, sampler)}.json') for sampler in variants]
        results = [result for result in results if result]
    else:
        results = [
            dict(read(path), work_dir=path.parent)
            for name in variants
            for path in sorted(run_folder(out, name, 0).parent.glob('seed_*/result.json'))
        ]
    if not results:
        print(f'{axis}: no results in {out}')
        return
    floor = read(out / 'floor.json')
    print_table(axis, results, floor)
    figure = draw_samplers if axis in ('guidance', 'solver') else draw_curves
    figure(out / f'{axis}.png', axis, results, floor)


COLUMNS = {
    'parameters': ('parameters', '{:,.0f}'),
    'gflops': ('GFLOPs a picture', '{:.3f}'),
    'cpu_seconds': ('CPU s', '{:.0f}'),
    'held_out_flow': ('flow loss', '{:.4f}'),
    'held_out_repa': ('alignment loss', '{:.4f}'),
    'distance': ('Fréchet distance', '{:.2f}'),
    'accuracy': ('accuracy', '{:.3f}'),
    'precision': ('precision', '{:.3f}'),
    'recall': ('recall', '{:.3f}'),
}


def print_table(axis: str, results: list[dict], floor: dict) -> None:
    """Means over seeds, and the range where there are several."""
    keys = [key for key in COLUMNS if any(key in result for result in results)]
    print(f'\n| {axis} | seeds | ' + ' | '.join(COLUMNS[key][0] for key in keys) + ' |')
    print('|---|---|' + '---|' * len(keys))
    for name in dict.fromkeys(result['name'] for result in results):
        group = [result for result in results if result['name'] == name]
        cells = [cell([result[key] for result in group if key in result], COLUMNS[key][1]) for key in keys]
        print(f'| {name} | {len(group)} | ' + ' | '.join(cells) + ' |')
    if floor:
        cells = [cell([floor[key]] if key in floor else [], COLUMNS[key][1]) for key in keys]
        print('| *real training pictures* | - | ' + ' | '.join(cells) + ' |')


def cell(values: list[float], form: str) -> str:
    if not values:
        return '-'
    mean = form.format(sum(values) / len(values))
    low, high = form.format(min(values)), form.format(max(values))
    return mean if low == high else f'{mean} ({low} to {high})'


def draw_curves(path: Path, axis: str, results: list[dict], floor: dict) -> None:
    """Loss curves, the mean over seeds: one row a patch size, flow matching left and alignment right."""
    import numpy as np

    from pixnerd_plugin.evaluation.study import curves

    names = list(dict.fromkeys(result['name'] for result in results))
    rows = list(dict.fromkeys(patch_of(name) for name in names))
    logged = {name: [curves(r['work_dir']) for r in results if r['name'] == name] for name in names}
    losses = [key for key in ('loss_flow', 'loss_repa') if any(key in run for runs in logged.values() for run in runs)]
    pyplot, figure, axes = new_figure(len(rows), len(losses))
    for row, patch in enumerate(rows):
        for column, key in enumerate(losses):
            for name in (name for name in names if patch_of(name) == patch):
                runs = [smooth([value for _, value in run[key]]) for run in logged[name]]
                steps = [step for step, _ in logged[name][0][key]]
                label = name.removesuffix(f', {patch}')
                line = axes[row][column].plot(steps, np.mean(runs, 0), label=label)[0]
                band = dict(alpha=0.2, color=line.get_color())
                axes[row][column].fill_between(steps, np.min(runs, 0), np.max(runs, 0), **band)
            title = dict(loss_flow='flow matching loss', loss_repa='alignment loss, weighted')[key]
            axes[row][column].set(xlabel='step', title=f'{title}, {patch}' if patch else title, yscale='log')
    axes[0][0].legend(fontsize=8)
    save_figure(path, pyplot, figure)


def patch_of(name: str) -> str:
    match = re.search(r'patch \d+$', name)
    return match[0] if match else ''


def smooth(values: list[float], window: int = 5) -> list[float]:
    """Mean of each value with those just before it."""
    parts = [values[max(0, i - window + 1) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw_samplers(path: Path, axis: str, results: list[dict], floor: dict) -> None:
    """Fréchet distance and accuracy by guidance scale, or by number of steps for each solver."""
    pyplot, figure, axes = new_figure(1, 2)
    lines: dict[str, list[dict]] = {}
    for result in results:
        lines.setdefault('' if axis == 'guidance' else result['name'].rsplit('_', 1)[0], []).append(result)
    for column, (key, title) in enumerate((('distance', 'Fréchet distance'), ('accuracy', 'accuracy'))):
        for name, points in lines.items():
            x = [point['sampler']['guidance_scale' if axis == 'guidance' else 'num_steps'] for point in points]
            axes[0][column].plot(x, [point[key] for point in points], marker='o', label=name)
        if floor:
            axes[0][column].axhline(floor[key], color='grey', linestyle=':', label='real pictures')
        axes[0][column].set(xlabel='guidance scale' if axis == 'guidance' else 'steps', title=title)
        if axis == 'solver':
            axes[0][column].set_xscale('log', base=2)
            axes[0][column].set_xticks(x, x)
    axes[0][0].legend(fontsize=8)
    save_figure(path, pyplot, figure)


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

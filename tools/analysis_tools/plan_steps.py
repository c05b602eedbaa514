"""``solver_error.py plan``: choose times and guided steps for a network, and compare them with other grids."""

import argparse
import json
from pathlib import Path

import options

SHIFT = 2.0
NODES = 200


def parse_args(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='solver_error.py plan',
        description='For each number of evaluations, choose the times of the steps and which of them are guided, so '
        'that the pictures come nearest to those of a run of many steps. --to writes them into a copy of the file, '
        'whose samplers use them with --planned. They are chosen on some pictures, and compared on others with even '
        'and shifted times.',
    )
    parser.add_argument('checkpoint', help='class-conditional: a .pth of tools/train.py, .safetensors, or published')
    parser.add_argument('--evaluations', type=int, nargs='+', default=[5, 8, 12, 16, 25], help='(5 8 12 16 25)')
    parser.add_argument('--order', type=int, default=2, help='of the Adams solver (2)')
    parser.add_argument('--guidance', type=float, help="guidance scale (the checkpoint's)")
    parser.add_argument('--reference-steps', type=int, default=1000)
    parser.add_argument('--num', type=int, default=8, help='pictures to choose by, and as many to compare by (8)')
    parser.add_argument('--runs', type=int, default=80, help='runs of the network for each number of evaluations (80)')
    parser.add_argument('--size', type=options.size, metavar='HxW', help="size in pixels (the checkpoint's)")
    parser.add_argument('--seed', type=int, default=0, help='seed of the first picture (0)')
    options.add_device(parser)
    parser.add_argument('--to', type=Path, metavar='FILE', help='copy of the checkpoint (.safetensors) with the plans')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/plan'), help='folder for figure and numbers')
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from pixnerd_plugin import load_pipeline
    from pixnerd_plugin.checkpoints.convert import convert
    from pixnerd_plugin.functional.noise import draw_noise, image_generators
    from pixnerd_plugin.sampling.plan import follow

    if min(args.evaluations) < 2 or args.reference_steps < 2 * max(*args.evaluations, NODES):
        raise ValueError(
            f'--evaluations {args.evaluations} must be at least 2, and --reference-steps {args.reference_steps} at '
            f'least twice as many, and {2 * NODES}'
        )
    pipe = load_pipeline(args.checkpoint, device=args.device, dtype='float32')
    if pipe.is_text or getattr(pipe.net, 'step_end', False):
        raise ValueError(f'{args.checkpoint}: plans are made for class-conditional networks that give velocities')
    scale = pipe.sampler.guidance_scale if args.guidance is None else args.guidance
    sampler = pipe.sampler.replace('AdamsFlowSampler', guidance_scale=scale, timeshift=1.0)

    def inputs(first: int) -> tuple:
        noise = draw_noise(image_generators(range(first, first + args.num)), (pipe.net.in_channels, *size))
        labels = torch.arange(args.num) % pipe.net.num_classes
        return tuple(x.to(pipe.device) for x in (noise, labels, torch.tensor([pipe.net.num_classes])))

    size = pipe.size_of(args.size)
    chosen_by, compared_by = inputs(args.seed + args.num), inputs(args.seed)
    reference = sampler.replace(num_steps=args.reference_steps, order=4)
    path, target = follow(pipe.net, reference, chosen_by, NODES)
    truth = reference.sample(pipe.net, *compared_by)
    plans, rows = [], []
    for count in tqdm(args.evaluations, disable=None):
        few = sampler.replace(num_steps=count, order=args.order)
        settings = choose(pipe.net, few, path, chosen_by, target, args.runs)
        grids = dict(uniform=few, shifted=few.replace(timeshift=SHIFT), planned=few.replace(**settings))
        errors = {name: distance(grid.sample(pipe.net, *compared_by), truth) for name, grid in grids.items()}
        rows.append(dict(evaluations=count, **errors, **settings))
        plan = dict(type='AdamsFlowSampler', order=args.order, guidance_scale=float(scale), error=errors['planned'])
        plans.append({**plan, **settings, 'guidance_interval': list(settings['guidance_interval'])})
    report(args, rows)
    if args.to is not None:
        convert(Path(args.checkpoint), args.to, plans=plans, force=True)
        print(f'{args.to} has the plans; draw with tools/sample.py {args.to} --steps {args.evaluations[0]} --planned')


def choose(net, sampler, path, inputs: tuple, target, runs: int) -> dict:
    """Times and guidance interval: many choices compared on the path, the best of them tried on the network."""
    from pixnerd_plugin.sampling.plan import descend

    reach = (-1, 1, -3, 3, -8, 8)
    starts = [path.choice(sampler.replace(timeshift=shift).times) for shift in (0.5, 1.0, SHIFT, 4.0)]
    starts = [start._replace(first=0) if start.first == 1 else start for start in starts]
    found = [descend(start, lambda choice: path.error(choice, sampler.order), reach, 3000)[0] for start in starts]

    def error(choice) -> float:
        return distance(sampler.replace(**path.settings(choice)).sample(net, *inputs), target)

    tried = sorted(((error(choice), choice) for choice in dict.fromkeys([*starts, *found])), key=lambda pair: pair[0])
    best, _ = descend(tried[0][1], error, reach, max(1, runs - len(tried)))
    return path.settings(best)


def distance(images, truth) -> float:
    """Mean over pictures of ``|images - truth| / |truth|``."""
    images, truth = images.double().flatten(1), truth.double().flatten(1)
    return float(((images - truth).norm(dim=1) / truth.norm(dim=1)).mean())


def report(args: argparse.Namespace, rows: list[dict]) -> None:
    """Print the table, keep the numbers, and draw times and errors."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from pixnerd_plugin.formats.atomic import atomic_path

    with atomic_path(args.out / 'plans.json') as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + '\n')
    print('| evaluations | uniform | shifted | planned |\n|---|---|---|---|')
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.2, 3.4), layout='constrained')
    counts = [row['evaluations'] for row in rows]
    for row in rows:
        print(f'| {row["evaluations"]} | {row["uniform"]:.4f} | {row["shifted"]:.4f} | {row["planned"]:.4f} |')
        low, high = row['guidance_interval']
        guided = [low < t < high for t in row['times']]
        left.scatter(row['times'], [row['evaluations']] * len(guided), c=['C3' if on else 'C7' for on in guided], s=12)
    left.set(xlabel='t', ylabel='evaluations', title='planned times (red: guided)')
    for name in ('uniform', 'shifted', 'planned'):
        right.plot(counts, [row[name] for row in rows], marker='o', label=name)
    right.set(xlabel='evaluations', ylabel=f'error against {args.reference_steps} steps', yscale='log')
    right.grid(alpha=0.3, which='both')
    right.legend()
    with atomic_path(args.out / 'plans.png') as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    print(f'figure: {args.out / "plans.png"}')

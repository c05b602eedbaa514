#!/usr/bin/env python
"""Measure how far each solver is from the true trajectory of a trained network, by steps and by network calls.

The error is that of the final picture against a reference of 1000 steps (Adams of order 4), relative in the L2 norm,
mean over pictures, with guidance as given at every time, and again with the guidance interval of the checkpoint, whose
edges are jumps of the velocity. An order of convergence is fitted over the finer half of the steps. Also drawn: the
estimate of the clean picture after each step (paper Fig. 8), a row a solver.

solver_error.py plan CHECKPOINT chooses times and guided steps instead (solver_error.py plan --help).
"""

import argparse
import json
import sys
from pathlib import Path

sys.path += map(str, Path(__file__).resolve().parents[:2])
import options

SOLVERS = {
    'Euler = Adams 1': dict(type='EulerFlowSampler'),
    'Heun': dict(type='HeunFlowSampler'),
    **{f'Adams {order}': dict(type='AdamsFlowSampler', order=order) for order in (2, 3, 4)},
}
STRIP_SOLVERS = ('Euler = Adams 1', 'Adams 2', 'Adams 3')
EVERYWHERE = (-1.0, 2.0)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='class-conditional: a .pth of tools/train.py, .safetensors, or published')
    parser.add_argument('--steps', type=int, nargs='+', default=[5, 10, 20, 50, 100], help='(5 10 20 50 100)')
    parser.add_argument('--reference-steps', type=int, default=1000)
    parser.add_argument('--guidance', type=float, help="guidance scale (the checkpoint's)")
    parser.add_argument('--num', type=int, default=8, help='pictures, classes taking turns (8)')
    parser.add_argument('--strip-steps', type=int, default=8, help='steps of the drawn trajectories (8)')
    parser.add_argument('--size', type=options.size, metavar='HxW', help="size in pixels (the checkpoint's)")
    parser.add_argument('--seed', type=int, default=0, help='seed of the first picture (0)')
    options.add_device(parser)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/solvers'), help='folder for figures and numbers')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from pixnerd_plugin import load_pipeline
    from pixnerd_plugin.functional.noise import draw_noise, image_generators

    if min(args.steps) < 1 or args.reference_steps <= max(args.steps):
        raise ValueError(f'--steps {args.steps} must be at least 1 and below --reference-steps {args.reference_steps}')
    pipe = load_pipeline(args.checkpoint, device=args.device, dtype='float32')
    if pipe.is_text:
        raise ValueError(f'{args.checkpoint} draws prompts; this study takes a class-conditional network')
    net, device = pipe.net, pipe.device
    scale = pipe.sampler.guidance_scale if args.guidance is None else args.guidance
    shape = (net.in_channels, *pipe.size_of(args.size))
    noise = draw_noise(image_generators(range(args.seed, args.seed + args.num)), shape)
    labels = (torch.arange(args.num) % net.num_classes).to(device)
    inputs = (net, noise.to(device), labels, torch.tensor([net.num_classes], device=device))

    interval, timeshift = pipe.sampler.guidance_interval, pipe.sampler.timeshift
    settings = {f'guidance {scale:g} at every time': EVERYWHERE, f'guidance {scale:g} in {interval}': interval}
    calls = sum(args.steps) * (len(SOLVERS) + 1) + args.reference_steps
    errors: dict[str, dict[str, list[float]]] = {}
    with tqdm(total=calls * len(settings), unit='call', disable=None) as bar:
        for setting, interval in settings.items():
            common = dict(guidance_scale=scale, guidance_interval=interval, timeshift=timeshift)
            best = dict(type='AdamsFlowSampler', order=4, num_steps=args.reference_steps)
            truth = run({**best, **common}, inputs, bar)
            errors[setting] = {
                name: [distance(run({**solver, **common, 'num_steps': n}, inputs, bar), truth) for n in args.steps]
                for name, solver in SOLVERS.items()
            }
    report(args, errors)
    # The last setting is the checkpoint's own.
    draw_strips(args, common, inputs)


def run(config: dict, inputs: tuple, bar):
    """Sample with a solver; the pictures ``(B, C, H, W)`` in float64."""
    from pixnerd_plugin.registry import MODELS

    sampler = MODELS.build(config)
    image = sampler.sample(*inputs)
    bar.update(config['num_steps'] * (2 if config['type'] == 'HeunFlowSampler' else 1))
    return image.double()


def distance(images, truth) -> float:
    """Mean over pictures of ``|image - truth| / |truth|``."""
    return ((images - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean().item()


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """Slope of the error over the step length, in logarithms, over the finer half of the steps (at least two)."""
    import numpy as np

    chosen = np.argsort(steps)[-max(2, (len(steps) + 1) // 2) :]
    slope = np.polyfit(np.log(np.array(steps)[chosen]), np.log(np.array(errors)[chosen]), 1)[0]
    return -float(slope)


def report(args: argparse.Namespace, errors: dict) -> None:
    """Print the tables, keep the numbers, and draw error over network calls."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from pixnerd_plugin.formats.atomic import atomic_path

    with atomic_path(args.out / 'errors.json') as temporary:
        temporary.write_text(json.dumps(dict(steps=args.steps, errors=errors), indent=1) + '\n')
    figure, axes = pyplot.subplots(1, len(errors), figsize=(9.2, 3.6), layout='constrained', sharey=True, squeeze=False)
    for panel, (setting, solvers) in zip(axes[0], errors.items(), strict=True):
        print(f'\n{setting}\n\n| solver | ' + ' | '.join(f'{n} steps' for n in args.steps) + ' | order |')
        print('|---|' + '---|' * (len(args.steps) + 1))
        for name, values in solvers.items():
            order = fitted_order(args.steps, values) if len(args.steps) > 1 else float('nan')
            print(f'| {name} | ' + ' | '.join(f'{value:.1e}' for value in values) + f' | {order:.2f} |')
            calls = [n * (2 if name == 'Heun' else 1) for n in args.steps]
            panel.plot(calls, values, marker='o', label=f'{name} (order {order:.1f})')
        panel.set(xscale='log', yscale='log', xlabel='network calls', title=setting)
        panel.grid(alpha=0.3, which='both')
        panel.legend(fontsize=8)
    axes[0][0].set_ylabel(f'relative error against {args.reference_steps} steps')
    path = args.out / 'errors.png'
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    print(f'\nfigure: {path}')


def draw_strips(args: argparse.Namespace, common: dict, inputs: tuple) -> None:
    """Write the clean picture that each step heads for: two pictures, each a row a solver, steps from left to right."""
    import numpy as np

    from pixnerd_plugin.images import image_grid, save_png, to_uint8
    from pixnerd_plugin.registry import MODELS

    net, noise, labels, null = inputs
    rows = []
    strips = {}
    for name in STRIP_SOLVERS:
        steps: list = []
        sampler = MODELS.build({**SOLVERS[name], **common, 'num_steps': args.strip_steps})
        sampler.sample(net, noise[:2], labels[:2], null, callback=steps.append)
        strips[name] = np.stack([to_uint8(step.denoised) for step in steps], 1)  # (2, steps, H, W, 3)
    for picture in range(min(2, len(noise))):
        rows += [strips[name][picture] for name in STRIP_SOLVERS]
    grid = image_grid(np.concatenate(rows), args.strip_steps)
    # Small pictures larger, every pixel repeated.
    factor = max(1, 64 // noise.shape[2])
    grid = grid.repeat(factor, 0).repeat(factor, 1)
    path = args.out / 'strips.png'
    save_png(path, grid)
    print(f'figure: {path}; rows of each picture: {", ".join(STRIP_SOLVERS)}')


if __name__ == '__main__':
    if sys.argv[1:2] == ['plan']:
        import plan_steps

        arguments, run_it = plan_steps.parse_args(sys.argv[2:]), plan_steps.main
    else:
        arguments, run_it = parse_args(), main
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        run_it(arguments)

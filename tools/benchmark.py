#!/usr/bin/env python
"""Measure this package on this machine. One subcommand a question; each prints a table for the docs."""

import argparse
import importlib
import sys
from pathlib import Path

MODELS = ('baseline-l16', 'l16', 'xl16', 'xxl16', 'tiny', 'tiny-text')
VARIANTS = (
    'ours',
    'bf16',
    'compile',
    'adamw-foreach',
    'adamw-loop',
    'ema-loop',
    'checkpoint',
    'accumulate-2',
    'return-memory',
)
WAYS = ('float32', 'float32, packed', 'bfloat16', 'bfloat16, packed')
DTYPES = ('float32', 'bfloat16')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    forward = commands.add_parser('forward', help='one evaluation of the network')
    common(forward, batch=[1, 2])
    forward.add_argument('--profile', action='store_true', help='also print where the time goes, by operator')
    sample = commands.add_parser('sample', help='a whole sampling run with the published settings, and its memory')
    common(sample, batch=[1])
    sample.add_argument('--steps', type=int, default=10, help='steps of the solver (10)')
    train = commands.add_parser('train', help='a training step with each feature on and off, and its memory')
    common(train, batch=[2])
    train.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS), help='steps to take (all)')
    table = commands.add_parser('table', help="the paper's Table 1: latency, training step and memory of each network")
    common(table, batch=[1], model=False)
    table.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS[:4]), help='networks (published)')
    table.add_argument('--steps', type=int, default=100, help='steps that latency is measured with (100)')
    table.add_argument('--no-train', action='store_true', help='leave the training step out')

    resolution = commands.add_parser(
        'resolution', help='peak memory by size of the picture, from a fixed grid of 32x32 tokens'
    )
    resolution.add_argument('--sizes', type=int, nargs='+', default=[512, 1024, 2048, 4096], help='sides in pixels')
    resolution.add_argument('--head', choices=['small', 'xxl'], default='xxl', help='shape of the field (xxl)')
    resolution.add_argument('--dtype', choices=DTYPES, default='float32')
    resolution.add_argument(
        '--steps', type=int, default=0, help='sample in so many guided steps instead of one forward'
    )
    resolution.add_argument('--chunk', type=int, help="pixels the field evaluates at once (the head's own limit)")
    resolution.add_argument('--whole', action='store_true', help='evaluate all pixels at once, for comparison')
    resolution.add_argument(
        '--reference',
        metavar='PATH',
        help='checkout of the published code: compare a forward of XXL/16 with 1 block',
    )
    resolution.add_argument('--rounds', type=int, default=3, help='with --reference, times each is measured (3)')
    timing(resolution)
    resolution.set_defaults(device='cpu', seed=0)

    roofline = commands.add_parser('roofline', help='what this CPU can do at most, and what the network does of it')
    common(roofline, batch=[1])
    roofline.add_argument('--out', type=Path, help='also draw the figure into this file')

    cpu = commands.add_parser('cpu', help='packed weights and bfloat16 on this CPU, against the published code')
    common(cpu, batch=[1])
    cpu.add_argument(
        '--steps', type=int, default=0, help='sample in so many steps; seconds are those of 100 (text: 25)'
    )

    cpu.add_argument('--ways', nargs='+', choices=WAYS, help='ways to compute ours, where memory is short (all)')
    cpu.add_argument('--products', action='store_true', help='also the matrix products of each way alone')
    cpu.add_argument('--no-autocast', action='store_true', help='leave the published code under autocast out')

    compiling = commands.add_parser('compile', help='seconds and graphs of compiling, and the kernels it leaves')
    common(compiling, batch=[1])
    compiling.add_argument('--backend', default='inductor', help='of torch.compile (inductor)')

    operators = commands.add_parser('operators', help='kernels that one forward asks a GPU for, counted without one')
    operators.add_argument('--model', choices=MODELS, default='xl16', help='network (xl16)')
    operators.add_argument('--depth', type=int, help='transformer blocks')
    operators.add_argument('--size', type=int, default=256, help='side in pixels (256)')
    operators.add_argument('--batch', type=int, nargs=1, default=[1], help='batch size')
    operators.add_argument('--dtype', choices=DTYPES, default='bfloat16')
    operators.add_argument('--reference', metavar='PATH', help='checkout of the published code, to count too')

    gpu = commands.add_parser('gpu', help='all that a GPU has to tell, most important first, in the minutes there are')
    gpu.add_argument('--minutes', type=float, default=6, help='begin nothing that would end later (6)')
    gpu.add_argument('--reference', metavar='PATH', help='checkout of the published code')
    gpu.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for gpu.jsonl and gpu.md')
    gpu.add_argument('--dry-run', action='store_true', help='try the command on a CPU with tiny networks')
    gpu.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def common(parser: argparse.ArgumentParser, batch: list[int], model: bool = True) -> None:
    """Arguments of every comparison."""
    if model:
        parser.add_argument('--model', choices=MODELS, default='l16', help='network (l16)')
    parser.add_argument('--depth', type=int, help='transformer blocks, to measure a part of a large network')
    parser.add_argument('--size', type=int, default=256 if model else None, help='side in pixels (256)')
    nargs = 1 if len(batch) == 1 else '+'
    parser.add_argument('--batch', type=int, nargs=nargs, default=batch, help='batch size')
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--compile', action='store_true', help='compile our network')
    parser.add_argument('--pack', action='store_true', help="pack our weights for a CPU's products")
    parser.add_argument('--reference', metavar='PATH', help='checkout of the published code, to take turns with')
    parser.add_argument('--reference-compile', action='store_true', help='compile the published network too')
    parser.add_argument('--rounds', type=int, default=5, help='times each is measured (5)')
    timing(parser)
    parser.add_argument('--seed', type=int, default=0)


def timing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--threads', type=int, help="CPU threads (torch's choice)")
    parser.add_argument(
        '--clock',
        choices=['wall', 'cpu'],
        default='wall',
        help="'cpu' counts this process's own computing, for a machine in use (wall)",
    )


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    sys.path.insert(0, str(Path(__file__).parent))
    # On a machine where the package is not installed, this checkout's.
    sys.path.append(str(Path(__file__).parents[1]))
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        importlib.import_module(f'benchmarks.{arguments.command}').run(arguments)

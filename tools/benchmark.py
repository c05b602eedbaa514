#!/usr/bin/env python
"""Measure this package on this machine. One subcommand a question; each prints a table for the docs."""

import argparse
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

# The published text-to-image head, and one for a laptop. The transformers are small: it is the field that grows.
HEADS = {
    'small': dict(dim=256, head=dict(width=32, depth=2, mlp_ratio=1)),
    'xxl': dict(dim=1536, head=dict(width=64, depth=2, mlp_ratio=2, coordinates='cosine', normalize='fc1')),
}
TOKEN_GRID = (32, 32)
CLASSES = 10


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    resolution = commands.add_parser(
        'resolution', help='peak memory by size of the picture, from a fixed grid of 32x32 tokens'
    )
    resolution.add_argument('--sizes', type=int, nargs='+', default=[512, 1024, 2048, 4096], help='sides in pixels')
    resolution.add_argument('--head', choices=HEADS, default='xxl', help='shape of the field (xxl)')
    resolution.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
    resolution.add_argument(
        '--steps', type=int, default=0, help='sample in so many guided steps instead of one forward'
    )
    resolution.add_argument('--chunk', type=int, help="pixels the field evaluates at once (the head's own limit)")
    resolution.add_argument('--whole', action='store_true', help='evaluate all pixels at once, for comparison')
    resolution.set_defaults(run=run_resolution)
    return parser.parse_args()


def run_resolution(args: argparse.Namespace) -> None:
    """Print for each size, in a fresh process, by how much the resident set rises at most while it computes.

    The network and the noise are there before and do not count. One column more says what one picture-sized buffer,
    a tensor (1, 3, H, W), takes: a forward has the pixels in patch order, their velocity, and the result.
    """
    print(f'{args.head} head, {args.dtype}, {"sampling" if args.steps else "one forward"}, batch 1, ', end='')
    print('all pixels at once' if args.whole else 'in chunks')
    print('| size | seconds | resident at the peak, MiB | risen while computing | over the first size | one buffer |')
    print('|---|---|---|---|---|---|')
    first = None
    for size in args.sizes:
        chunk = size**2 * 2 if args.whole else args.chunk
        seconds, peak, risen, buffer = in_fresh_process(
            measure_resolution, size, args.head, args.dtype, args.steps, chunk
        )
        first = risen if first is None else first
        print(
            f'| {size}x{size} | {seconds:.1f} | {peak:.0f} | {risen:.0f} | {risen - first:.0f} | {buffer:.0f} |',
            flush=True,
        )


def measure_resolution(
    size: int, head: str, dtype: str, steps: int, chunk: int | None
) -> tuple[float, float, float, float]:
    """Return seconds, and in MiB the peak of this process, how far it rose, and one picture-sized buffer."""
    import time

    import torch

    from pixnerd_plugin.registry import MODELS
    from pixnerd_plugin.sampling import AdamsFlowSampler

    torch.manual_seed(0)
    shape = HEADS[head]
    net = MODELS.build(
        dict(
            type='PixNerdDiT',
            dim=shape['dim'],
            depth=2,
            num_heads=4,
            num_classes=CLASSES,
            head=dict(type='NeuralFieldHead', **shape['head']),
        )
    ).to(getattr(torch, dtype))
    x = torch.randn(1, 3, size, size, dtype=getattr(torch, dtype))
    cond, null = torch.tensor([0]), torch.tensor([CLASSES])
    # Building the network has a peak of its own: forget it.
    Path('/proc/self/clear_refs').write_text('5')
    before, start = memory('VmRSS'), time.perf_counter()
    with torch.no_grad():
        if steps:
            AdamsFlowSampler(steps).sample(net, x, cond, null, token_grid=TOKEN_GRID, field_chunk=chunk)
        else:
            net(x, torch.tensor([0.5]), cond, token_grid=TOKEN_GRID, field_chunk=chunk)
    peak = memory('VmHWM')
    return time.perf_counter() - start, peak, peak - before, x.nbytes / 2**20


def in_fresh_process(function, *args):
    """Call ``function`` in a new process, so that nothing else counts in its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise ValueError('the process was killed, most likely for want of memory; try smaller --sizes') from None


def memory(field: str) -> float:
    """MiB of this process that are resident (VmRSS), or were at most (VmHWM)."""
    status = Path('/proc/self/status')
    if not status.exists():
        raise ValueError('memory is read from /proc, which this system does not have; run it on Linux')
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        arguments.run(arguments)

"""Large pictures from a fixed grid of tokens: time and peak memory by size."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler

from .measure import CLOCKS, Peak, in_fresh_process, machine, prepare, print_header, print_row, ratio, summary
from .networks import SHAPES, build, relative_difference

# The published text-to-image head, and one for a laptop. The transformers are small: it is the field that grows.
HEADS = {
    'small': dict(dim=256, head=dict(width=32, depth=2, mlp_ratio=1)),
    'xxl': dict(dim=1536, head=dict(width=64, depth=2, mlp_ratio=2, coordinates='cosine', normalize='fc1')),
}
TOKEN_GRID = (32, 32)
CLASSES = 10


def run(args: Any) -> None:
    """Print a row a size, of our network alone or against the published one."""
    prepare(args)
    if args.reference:
        compare(args)
    else:
        alone(args)


def alone(args: Any) -> None:
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
        seconds, peak, risen, buffer = in_fresh_process(measure, size, args.head, args.dtype, args.steps, chunk)
        first = risen if first is None else first
        print(
            f'| {size}x{size} | {seconds:.1f} | {peak:.0f} | {risen:.0f} | {risen - first:.0f} | {buffer:.0f} |',
            flush=True,
        )


def measure(size: int, head: str, dtype: str, steps: int, chunk: int | None) -> tuple[float, float, float, float]:
    """Return seconds, and in MiB the peak of this process, how far it rose, and one picture-sized buffer."""
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
    start = time.perf_counter()
    with Peak('cpu') as used, torch.no_grad():
        if steps:
            AdamsFlowSampler(steps).sample(net, x, cond, null, token_grid=TOKEN_GRID, field_chunk=chunk)
        else:
            net(x, torch.tensor([0.5]), cond, token_grid=TOKEN_GRID, field_chunk=chunk)
    return time.perf_counter() - start, used.whole, used.risen, x.nbytes / 2**20


def compare(args: Any) -> None:
    """Print for each size what one forward takes, ours and the published one in turns.

    Both are the published text-to-image network with one block and the same weights.
    """
    print(f'XXL/16 text to image, 1 block, float32, one forward, batch 1; {machine(args)}')
    print_header('size', 'ours, s', 'published, s', 'ratio', 'ours, MiB risen', 'published', 'ratio', 'difference')
    for size in args.sizes:
        seconds, risen, difference = in_fresh_process(measure_both, args, size)
        memory = f'1/{risen["published"] / risen["ours"]:.1f}'
        times = [*(summary(took) for took in seconds.values()), ratio(*seconds.values())]
        print_row(f'{size}x{size}', *times, *(f'{mib:.0f}' for mib in risen.values()), memory, f'{difference:.1e}')


def measure_both(args: Any, size: int) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Seconds of each round; MiB by which this process rises at most above weights and noise; relative difference."""
    prepare(args)
    shape = replace(SHAPES['xxl16'], depth=1, text_depth=1, any_size=True)
    net, published = build(shape, 'cpu', args.reference)
    x, t = torch.randn(1, 3, size, size), torch.tensor([0.5])
    cond, _ = shape.conditions(1, 'cpu', x.dtype)
    # The release sets the pixels of a patch as a multiple of its own 16.
    published.net.decoder_patch_scaling_h = published.net.decoder_patch_scaling_w = size / TOKEN_GRID[0] / 16
    calls = {
        'ours': lambda: net(x, t, cond, token_grid=TOKEN_GRID, field_chunk=args.chunk),
        'published': lambda: published(x, t, cond),
    }
    now, outputs = CLOCKS[args.clock], {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    risen = dict.fromkeys(calls, 0.0)
    with torch.inference_mode():
        for _ in range(args.rounds):
            for name, call in calls.items():
                start = now()
                with Peak('cpu') as used:
                    outputs[name] = call()
                seconds[name].append(now() - start)
                risen[name] = max(risen[name], used.risen)
    return seconds, risen, relative_difference(*outputs.values())

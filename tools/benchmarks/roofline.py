"""What this CPU can do at most, by size of a matrix product and by memory traffic, and what one forward does of it."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .forward import contenders
from .measure import machine, prepare, print_header, print_row, take_turns
from .networks import shape_of

SIDES = (16, 32, 64, 128, 256, 512, 1024)


def run(args: Any) -> None:
    """Print the rates, and draw them with ``--out``."""
    prepare(args)
    if args.device != 'cpu':
        raise ValueError('roofline measures the CPU; leave --device out')
    shape = shape_of(args)
    bandwidth = copy_bandwidth(args)
    print(f'{machine(args)}; a copy of 256 MiB moves {bandwidth:.1f} GB/s')
    products = [(side / 6, product_rate(side, args)) for side in SIDES]
    print_header('product of side', 'FLOP a byte', 'GFLOP/s')
    for side, (intensity, rate) in zip(SIDES, products, strict=True):
        print_row(side, f'{intensity:.1f}', f'{rate:.1f}')
    forwards = {}
    for name, call in contenders(args, args.batch[0]).items():
        with FlopCounterMode(display=False) as counter:
            call()
        seconds = statistics.median(take_turns({name: call}, args.rounds, args.clock, 'cpu')[name])
        forwards[name] = counter.get_total_flops() / seconds / 1e9
        print(f'{shape.name}, {shape.depth} blocks, {name}: {forwards[name]:.1f} GFLOP/s over a whole forward')
    if args.out:
        draw(args.out, bandwidth, products, forwards)


def copy_bandwidth(args: Any) -> float:
    """GB/s read and written."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    seconds = take_turns({'copy': lambda: target.copy_(source)}, args.rounds, args.clock, 'cpu')['copy']
    return 2 * source.nbytes / statistics.median(seconds) / 1e9


def product_rate(side: int, args: Any) -> float:
    """GFLOP/s of products of square float32 matrices."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    times = max(1, 2**27 // side**3)

    def call() -> None:
        for _ in range(times):
            a @ b

    seconds = take_turns({'product': call}, args.rounds, args.clock, 'cpu')['product']
    return 2 * side**3 * times / statistics.median(seconds) / 1e9


def draw(path: Any, bandwidth: float, products: list[tuple[float, float]], forwards: dict[str, float]) -> None:
    """The roof, the products under it, and the forwards as lines."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    peak = max(rate for _, rate in products)
    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    intensities = [2.0**k for k in range(-3, 9)]
    axes.loglog(intensities, [min(peak, bandwidth * i) for i in intensities], color='black', label='roof, measured')
    axes.loglog(*zip(*products, strict=True), 'o', label='square products')
    for style, (name, rate) in zip(('-', '--'), forwards.items(), strict=False):
        axes.axhline(rate, linestyle=style, color='tab:red', label=f'one forward, {name}')
    axes.set(xlabel='FLOP per byte of memory', ylabel='GFLOP/s')
    axes.legend()
    figure.savefig(path, dpi=100)

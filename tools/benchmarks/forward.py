"""One evaluation of the network."""

from __future__ import annotations

from typing import Any

import torch

from .measure import machine, prepare, print_header, print_row, ratio, summary, take_turns
from .networks import build, relative_difference, shape_of


def run(args: Any) -> None:
    """Time one forward per batch size; with ``--reference`` in turns with the published network, same weights."""
    prepare(args)
    shape = shape_of(args)
    print(f'{shape.name}, {shape.depth} blocks, {args.size}x{args.size}, {args.dtype}; {machine(args)}')
    print_header('batch', 'seconds: median (range)', 'published', 'ratio', 'relative difference')
    for batch in args.batch:
        calls = contenders(args, batch)
        seconds = take_turns(calls, args.rounds, args.clock, args.device)
        cells = ['–'] * 3
        if args.reference:
            difference = relative_difference(*[call() for call in calls.values()])
            speedup = ratio(seconds['ours'], seconds['published'])
            cells = [summary(seconds['published']), speedup, f'{difference:.1e}']
        print_row(batch, summary(seconds['ours']), *cells)
        if args.profile:
            print_profile(calls, args.device)


def print_profile(calls: dict[str, Any], device: str, rows: int = 10) -> None:
    """Where the time of one call goes: share of each operator's own time."""
    attribute = 'self_device_time_total' if device == 'cuda' else 'self_cpu_time_total'
    for name, call in calls.items():
        with torch.profiler.profile() as profiler:
            call()
        times = {event.key: getattr(event, attribute) for event in profiler.key_averages()}
        times = {key: time for key, time in times.items() if time > 0}
        print_header(f'{name}: operator', 'share of the time')
        for key in sorted(times, key=times.__getitem__, reverse=True)[:rows]:
            print_row(key, f'{times[key] / sum(times.values()):.1%}')


def contenders(args: Any, batch: int) -> dict[str, Any]:
    """Calls of one forward, ours and the published one's where its checkout is given."""
    shape, dtype = shape_of(args), getattr(torch, args.dtype)
    net, published = build(shape, args.device, args.reference)
    net = net.to(dtype).eval()
    if args.compile:
        net.compile()
    if args.pack:
        net.pack()
    if args.reference_compile and published is not None:
        published.net.compile()
    x, t = torch.randn(batch, 3, args.size, args.size, device=args.device), torch.rand(batch, device=args.device)
    cond, _ = shape.conditions(batch, args.device, torch.float32)

    @torch.inference_mode()
    def ours() -> Any:
        return net(x.to(dtype), t, cond)

    @torch.inference_mode()
    def theirs() -> Any:
        # Published: bfloat16 is autocast over float32 weights.
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return published(x, t, cond)

    return {'ours': ours} if published is None else {'ours': ours, 'published': theirs}

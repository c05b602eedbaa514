"""A whole sampling run, guidance included."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler
from pixnerd_plugin.sampling.samplers import FlowSampler

from .measure import Peak, in_fresh_process, machine, prepare, print_header, print_row, ratio, summary, take_turns
from .networks import Shape, build, relative_difference, shape_of


def run(args: Any) -> None:
    """Time sampling with the published settings, then its peak memory, each implementation in a fresh process."""
    prepare(args)
    calls = contenders(args)
    shape = shape_of(args)
    print(
        f'{shape.name}, {shape.depth} blocks, {args.size}x{args.size}, batch {args.batch[0]}, {args.steps} steps, '
        f'{args.dtype}; {machine(args)}'
    )
    seconds = take_turns(calls, args.rounds, args.clock, args.device)
    names = list(calls)
    difference = relative_difference(*[calls[name]() for name in names]) if len(names) > 1 else None
    del calls
    print_header('', 'seconds: median (range)', 'MiB above the weights', 'MiB in all')
    for name in names:
        risen, whole = in_fresh_process(peak, args, name)
        print_row(name, summary(seconds[name]), f'{risen:.0f}', f'{whole:.0f}')
    if difference is not None:
        print(f'ratio {ratio(*[seconds[name] for name in names])}, relative difference {difference:.1e}')


def contenders(args: Any, only: str | None = None) -> dict[str, Any]:
    """Calls that sample a batch, ours and the published one's where its checkout is given."""
    shape, dtype, batch = shape_of(args), getattr(torch, args.dtype), args.batch[0]
    net, published = build(shape, args.device, args.reference)
    noise = torch.randn(batch, 3, args.size, args.size, device=args.device)
    cond, null = shape.conditions(batch, args.device, torch.float32)
    calls: dict[str, Any] = {}
    if only != 'published':
        calls['ours'] = _ours(args, shape, net.to(dtype).eval(), noise, cond, null[:1])
    if published is not None and only != 'ours':
        calls['published'] = _published(args, shape, published, noise, cond, null)
        # One picture has one null condition; ours takes it for all.
        null[:] = null[:1].clone()
    return calls


def evaluations(shape: Shape, steps: int, name: str) -> int:
    """Pictures that the network sees for one: two at a guided step; in the published code, two at every step."""
    if name == 'published':
        return 2 * steps
    sampler = sampler_of(shape)(steps)
    low, high = sampler.guidance_interval
    return sum(2 if low < t < high else 1 for t in sampler.times[:-1])


def sampler_of(shape: Shape) -> type[FlowSampler]:
    return AdamsFlowSampler if shape.text else EulerFlowSampler


def _ours(args: Any, shape: Shape, net: nn.Module, noise: Any, cond: Any, null: Any) -> Any:
    if args.pack:
        net.pack()
    sampler = sampler_of(shape)(args.steps, compile=args.compile)
    return lambda: sampler.sample(net, noise, cond, null)


def published_sampler(shape: Shape, steps: int) -> Any:
    """The sampler of the release, with its settings; importable once a published network was built."""
    # These modules of the release need torch alone.
    from src.diffusion.base.guidance import simple_guidance_fn
    from src.diffusion.flow_matching.adam_sampling import AdamLMSampler
    from src.diffusion.flow_matching.sampling import EulerSampler
    from src.diffusion.flow_matching.scheduling import LinearScheduler

    common = dict(num_steps=steps, scheduler=LinearScheduler(), guidance_fn=simple_guidance_fn)
    if shape.text:
        return AdamLMSampler(order=2, timeshift=3.0, guidance=4.0, **common)
    return EulerSampler(guidance=3.5, guidance_interval_min=0.1, guidance_interval_max=1.0, **common)


def _published(args: Any, shape: Shape, published: nn.Module, noise: Any, cond: Any, null: Any) -> Any:
    sampler = published_sampler(shape, args.steps)
    if args.reference_compile:
        published.net.compile()

    @torch.inference_mode()
    def call() -> Any:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == 'bfloat16'):
            return sampler(published, noise, cond, null)

    return call


def peak(args: Any, name: str) -> tuple[float, float]:
    """MiB above the weights, and in all, of one run in this process."""
    prepare(args)
    calls = contenders(args, only=name)
    if args.compile or args.reference_compile:
        calls[name]()  # compiling needs memory of its own
    with Peak(args.device) as used:
        calls[name]()
    return used.risen, used.whole

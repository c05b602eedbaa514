"""A training step: flow and alignment loss, backward pass, AdamW, EMA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pixnerd_plugin.memory import keep_freed_memory
from pixnerd_plugin.models.losses import FlowMatchREPALoss

from .measure import Peak, in_fresh_process, machine, prepare, print_header, print_row, ratio, summary, take_turns_apart
from .networks import build, shape_of

# What a step is made of, and how each variant differs from the step that training takes.
DEFAULT = dict(
    bf16=False, compile=False, adamw='fused', ema='foreach', checkpoint=False, accumulate=1, keep_memory=True
)
VARIANTS: dict[str, dict[str, Any]] = {
    'ours': {},
    'bf16': dict(bf16=True),
    'compile': dict(compile=True),
    'adamw-foreach': dict(adamw='foreach'),
    'adamw-loop': dict(adamw='loop'),
    'ema-loop': dict(ema='loop'),
    'checkpoint': dict(checkpoint=True),
    'accumulate-2': dict(accumulate=2),
    'return-memory': dict(keep_memory=False),
}
PUBLISHED = 'published'
TEACHER_DIM = 768


def run(args: Any) -> None:
    """Time each variant in turns, then measure its memory in a fresh process; ratios are against ``ours``."""
    prepare(args)
    shape, names = shape_of(args), list(dict.fromkeys(['ours', *args.variants]))
    if args.reference:
        names.append(PUBLISHED)
    seconds = take_turns_apart(step_of, args, names)
    default = 'bfloat16 autocast' if args.dtype == 'bfloat16' else 'float32'
    print(f'{shape.name}, {shape.depth} blocks, {args.size}x{args.size}, batch {args.batch[0]}, {default}; ', end='')
    print(machine(args))
    print_header('step', 'seconds: median (range)', 'time as a multiple of ours', 'MiB in all')
    for name in names:
        whole = in_fresh_process(peak, args, name)
        print_row(name, summary(seconds[name]), ratio(seconds['ours'], seconds[name]), f'{whole:.0f}')


def step_of(args: Any, name: str) -> Callable[[], None]:
    """A call that takes one optimiser step on a fixed batch."""
    shape, batch = shape_of(args), args.batch[0]
    settings = dict(DEFAULT, bf16=args.dtype == 'bfloat16', compile=args.compile)
    settings.update(VARIANTS.get(name, dict(adamw='foreach', compile=args.reference_compile)))
    ours, published = build(shape, args.device, args.reference if name == PUBLISHED else None)
    net: nn.Module = ours if published is None else published
    if published is None:
        net.checkpoint = settings['checkpoint']
        if args.device == 'cpu' and settings['keep_memory']:
            keep_freed_memory()
    if settings['compile']:
        (net if published is None else published.net).compile()
    align = min(8, shape.depth)
    loss = FlowMatchREPALoss(align, dim=shape.dim, projector_dim=shape.dim, teacher_dim=TEACHER_DIM).to(args.device)
    parameters = [*net.parameters(), *loss.parameters()]
    how = {'fused': dict(fused=True), 'foreach': dict(foreach=True), 'loop': dict(foreach=False)}[settings['adamw']]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, **how)
    average = [p.detach().clone() for p in net.parameters()]
    images = torch.rand(batch, 3, args.size, args.size, device=args.device) * 2 - 1
    cond, null = shape.conditions(batch, args.device, torch.float32)
    features = torch.randn(batch, (args.size // 16) ** 2, TEACHER_DIM, device=args.device)
    parts = range(0, batch, max(1, batch // settings['accumulate']))

    def step() -> None:
        for first in parts:
            part = slice(first, first + parts.step)
            with torch.autocast(args.device, torch.bfloat16, enabled=settings['bf16']):
                losses = loss(net, images[part], cond[part], null[part], teacher_features=features[part])
            (sum(losses.values()) / len(parts)).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            if settings['ema'] == 'foreach':
                torch._foreach_lerp_(average, list(net.parameters()), 1e-4)
            else:
                for mean, p in zip(average, net.parameters(), strict=True):
                    mean.lerp_(p, 1e-4)

    return step


def peak(args: Any, name: str) -> float:
    """MiB of the second step, weights, optimiser and average included."""
    prepare(args)
    step = step_of(args, name)
    step()
    with Peak(args.device) as used:
        step()
    return used.whole

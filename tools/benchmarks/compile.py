"""What compiling costs and what it leaves: seconds, graphs and kernels, whole and block by block."""

from __future__ import annotations

import re
import resource
import tempfile
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from .measure import machine, prepare, print_header, print_row
from .networks import Shape, build, shape_of

# Calls of generated code: fused kernels, and those of libraries.
KERNEL = re.compile(r'^\s+(?:\w+ = )?(?:cpp_fused_\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(|\.run\(', re.MULTILINE)


def run(args: Any) -> None:
    """A row for each way of compiling, of a forward and of a training step's forward and backward pass."""
    prepare(args)
    shape = shape_of(args)
    print(f'{shape.name}, {shape.depth} blocks, {args.size}x{args.size}, {args.dtype}; {machine(args)}')
    print_header('', 'seconds of computing until the first result', 'graphs', 'kernels in their code')
    for trained in (False, True):
        for regional in (True, False):
            seconds, graphs, kernels = compiled(args, shape, trained, regional)
            what = 'forward and backward' if trained else 'forward'
            print_row(f'{what}, {"by block" if regional else "whole"}', f'{seconds:.0f}', graphs, kernels)


def compiled(args: Any, shape: Shape, trained: bool, regional: bool) -> tuple[float, int, int | str]:
    """Compile a new network with an empty cache."""
    net, _ = build(shape, args.device)
    net = net.to(getattr(torch, args.dtype)).train(trained)
    x = torch.randn(1, 3, args.size, args.size, device=args.device).to(net.patch_embed.weight.dtype)
    t = torch.rand(1, device=args.device)
    cond, _ = shape.conditions(1, args.device, x.dtype)
    torch.compiler.reset()
    counters.clear()
    net.compile(regional=regional, backend=args.backend)
    # In this process, whose computing is counted, and that of the compilers that it starts.
    with (
        tempfile.TemporaryDirectory() as cache,
        patch.dict('os.environ', TORCHINDUCTOR_CACHE_DIR=cache),
        torch._inductor.config.patch(compile_threads=1, fx_graph_cache=False),
    ):
        before = computed()
        _, code = run_and_get_code(first, net, (x, t, cond), trained)
        seconds = computed() - before
    bodies = [part[part.index('def call(') :] for part in code if 'def call(' in part]
    kernels = sum(len(KERNEL.findall(body)) for body in bodies)
    return seconds, counters['stats']['unique_graphs'], kernels if bodies else '–'


def first(net: nn.Module, inputs: tuple[Any, ...], trained: bool) -> None:
    with torch.set_grad_enabled(trained):
        v = net(*inputs)
    if trained:
        v.float().square().mean().backward()


def computed() -> float:
    """Seconds that this process and those it has waited for have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)

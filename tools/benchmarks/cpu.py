"""What a CPU gains by packed weights and bfloat16: our network in each way, and the published one, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .measure import machine, prepare, print_header, print_row, ratio, summary, take_turns
from .networks import Shape, build, relative_difference, shape_of
from .sample import evaluations, published_sampler, sampler_of

PUBLISHED, AUTOCAST = 'published', 'published, bfloat16 autocast'
WAYS = {
    'float32': (torch.float32, False),
    'float32, packed': (torch.float32, True),
    'bfloat16': (torch.bfloat16, False),
    'bfloat16, packed': (torch.bfloat16, True),
}

# Attention's two are inside one operator on a CPU, and are not among them. In inference mode composites stay whole.
PRODUCTS = (
    'mkldnn._linear_pointwise',
    'aten.linear',
    'aten.matmul',
    'aten.mm',
    'aten.addmm',
    'aten.bmm',
    'aten.baddbmm',
)


def run(args: Any) -> None:
    """A row a way: seconds, how much faster than the published code in float32, and the error against it."""
    prepare(args)
    shape, batch = shape_of(args), args.batch[0]
    if args.products and args.steps:
        raise ValueError('--products is of one forward: leave --steps out')
    what = f'{args.steps} steps of sampling' if args.steps else 'one forward'
    print(f'{shape.name}, {shape.depth} blocks, {args.size}x{args.size}, batch {batch}, {what}; {machine(args)}')
    calls = contenders(args, shape, batch)
    first = next(iter(calls))
    # The round that does not count gives the results to compare.
    results = {name: call() for name, call in calls.items()}
    errors = {name: f'{relative_difference(result, results[first]):.2e}' for name, result in results.items()}
    if args.products:
        calls |= {
            f'{name}: its products alone': products_of(call) for name, call in calls.items() if _whose(name) == 'ours'
        }
    seconds = take_turns(calls, args.rounds, args.clock, 'cpu', warm=False)
    if args.steps:
        # The published code evaluates both branches at every step, also where nothing is guided: 200 evaluations in
        # 100 steps of classes, and 189 in ours. Few steps have other shares.
        whole = 25 if shape.text else 100
        for name in calls:
            share = evaluations(shape, whole, _whose(name)) / evaluations(shape, args.steps, _whose(name))
            seconds[name] = [s * share for s in seconds[name]]
    print_header('', 'seconds: median (range)', f'times as fast as {first}', f'relative error against {first}')
    for name in calls:
        print_row(name, summary(seconds[name]), ratio(seconds[name], seconds[first]), errors.get(name, ''))


def _whose(name: str) -> str:
    return 'published' if name in (PUBLISHED, AUTOCAST) else 'ours'


def products_of(call: Callable[[], Tensor]) -> Callable[[], None]:
    """The matrix products of ``call`` alone, on noise of the same shapes: what is left if all else were free."""
    products: list[tuple[Any, list[Any], dict[str, Any]]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if str(func).rsplit('.', 1)[0] in PRODUCTS:
                products.append((func, [_like(arg) for arg in args], kwargs))
            return func(*args, **kwargs)

    with Recorder():
        call()

    @torch.inference_mode()
    def again() -> None:
        for func, args, kwargs in products:
            func(*args, **kwargs)

    again()
    return again


def _like(arg: Any) -> Any:
    """Noise in place of activations; weights, packed or not, stay the network's own."""
    is_weight = isinstance(arg, Tensor) and (
        arg.is_mkldnn or isinstance(arg, nn.Parameter) or isinstance(arg._base, nn.Parameter)
    )
    return torch.randn_like(arg) if isinstance(arg, Tensor) and not is_weight else arg


def contenders(args: Any, shape: Shape, batch: int) -> dict[str, Callable[[], Tensor]]:
    """The calls, the one to compare with first."""
    net, published = build(shape, 'cpu', args.reference)
    x, t = torch.randn(batch, 3, args.size, args.size), torch.rand(batch)
    cond, null = shape.conditions(batch, 'cpu', torch.float32)
    calls: dict[str, Callable[[], Tensor]] = {}
    if published is not None:
        their_sampler = published_sampler(shape, args.steps) if args.steps else None

        def theirs(autocast: bool) -> Tensor:
            with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                if their_sampler is not None:
                    return their_sampler(published, x, cond, null[:1].expand_as(cond)).float()
                return published(x, t, cond).float()

        calls[PUBLISHED] = lambda: theirs(False)
        if not args.no_autocast:
            calls[AUTOCAST] = lambda: theirs(True)

    def ours(own: Any) -> Tensor:
        if args.steps:
            return sampler_of(shape)(args.steps).sample(own, x, cond, null[:1])
        with torch.inference_mode():
            return own(x.to(own.patch_embed.bias.dtype), t, cond).float()

    ways = {name: WAYS[name] for name in args.ways or WAYS}
    # A network in float32 that is packed alone needs no copy; copying unpacks, so packing comes last.
    is_shared = {'float32', 'float32, packed'} <= ways.keys()
    nets = {
        name: (copy.deepcopy(net) if dtype != torch.float32 or (packed and is_shared) else net).to(dtype).eval()
        for name, (dtype, packed) in ways.items()
    }
    for name, own in nets.items():
        if ways[name][1]:
            own.pack()
        calls[name] = lambda own=own: ours(own)
    return calls

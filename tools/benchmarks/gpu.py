"""Everything that only a GPU can tell, in a few minutes and one process: the most important first, each row at once."""

from __future__ import annotations

import gc
import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pixnerd_plugin.formats.atomic import atomic_path

from . import sample, train
from .field import field
from .golden import GOLDENS, golden_run
from .measure import summary
from .networks import SHAPES, build, relative_difference

# Of the dry form, which runs all of this on a CPU in seconds.
TINY = {'xl16': 'tiny', 'l16': 'tiny', 'xxl16': 'tiny-text'}

LEAST_SECONDS = 15
"""What must be left of the time to begin a measurement; a compilation takes longer."""
COMPILE_SECONDS = 60


def run(args: Any) -> None:
    """Write DIR/gpu.jsonl, a row as soon as it is measured, and DIR/gpu.md, the table of them."""
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError('this machine has no usable GPU; --dry-run tries the command on a CPU with tiny networks')
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args)
    # Compiling takes longer than all the rest: in the dry form what is compiled runs as it is.
    with torch.compiler.set_stance('force_eager' if args.dry_run else 'default'):
        for name, job in JOBS:
            report.section = name
            with report.problems():
                job(report)
            report.forget()
    print(f'{report.elapsed():.0f} s; {args.out / "gpu.md"}')


class Report:
    """The rows so far, the time that is left, and what all jobs share."""

    def __init__(self, args: Any):
        self.started = time.perf_counter()
        self.deadline = self.started + 60 * args.minutes
        self.out: Path = args.out
        self.reference: str | None = args.reference
        self.seed: int = args.seed
        self.dry: bool = args.dry_run
        self.device = 'cpu' if self.dry else 'cuda'
        self.section = ''
        self.rows: list[dict[str, Any]] = []
        (self.out / 'gpu.jsonl').write_text('')

    def add(self, case: str, value: str, detail: str = '') -> None:
        """Write a row."""
        row = dict(section=self.section, case=case, value=value, detail=detail, second=round(self.elapsed(), 1))
        self.rows.append(row)
        print(f'{row["second"]:6.1f}  {self.section}: {case}: {value} {detail}', flush=True)
        with (self.out / 'gpu.jsonl').open('a') as file:
            file.write(json.dumps(row) + '\n')
        lines = ['| what | case | result | |', '|---|---|---|---|']
        lines += [f'| {r["section"]} | {r["case"]} | {r["value"]} | {r["detail"]} |' for r in self.rows]
        with atomic_path(self.out / 'gpu.md') as temporary:
            temporary.write_text('\n'.join(lines) + '\n')

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def has(self, seconds: float = LEAST_SECONDS) -> bool:
        """Whether so much time is left."""
        return self.dry or time.perf_counter() + seconds < self.deadline

    @contextmanager
    def problems(self, case: str = '') -> Iterator[None]:
        """Make a row of what goes wrong, and go on: the next row may be right."""
        try:
            yield
        except torch.OutOfMemoryError:
            self.add(case, 'out of memory')
        except Exception as error:
            if self.dry:
                raise
            self.add(case, 'failed', f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')

    def seconds(self, call: Callable[[], Any], at_most: float = 2.0) -> list[float]:
        """Seconds of some calls after two that do not count, as many as fit into ``at_most`` seconds, at least 3."""
        for _ in range(2):
            call()
        found: list[float] = []
        while len(found) < 3 or (sum(found) < at_most and len(found) < 50):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
            if self.dry:
                break
        return found

    def time(self, case: str, call: Callable[[], Any], baseline: float | None = None, detail: str = '') -> float:
        """Add a row of milliseconds; return the median in seconds."""
        seconds = self.seconds(call)
        median = statistics.median(seconds)
        if baseline is not None:
            detail = f'{baseline / median:.2f}x of ours in eager mode' + (f', {detail}' if detail else '')
        self.add(case, f'{summary([1000 * s for s in seconds])} ms', detail)
        return median

    def wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], Any]) -> str:
        """MiB at the peak of a call, weights included."""
        if self.device != 'cuda':
            call()
            return 'not measured'
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return f'{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB'

    def network(self, name: str, reference: bool = False) -> tuple[Any, nn.Module, Any]:
        """Shape, our network in float32 and the published one."""
        torch.manual_seed(self.seed)
        shape = SHAPES[TINY[name] if self.dry else name]
        return shape, *build(shape, self.device, self.reference if reference else None)

    def side(self, name: str) -> int:
        return (32 if self.dry else 512) if name == 'xxl16' else (32 if self.dry else 256)

    def compile(self, net: nn.Module, **options: Any) -> None:
        torch.compiler.reset()
        net.compile(**options)

    def forget(self) -> None:
        """Give memory back."""
        gc.collect()
        if self.device == 'cuda':
            torch.cuda.empty_cache()

    def arguments(self, name: str, batch: int, **more: Any) -> Namespace:
        """What the other subcommands take."""
        common = dict(
            depth=None, threads=None, compile=False, pack=False, reference_compile=False, dtype='bfloat16', steps=100
        )
        return Namespace(
            model=TINY[name] if self.dry else name,
            size=self.side(name),
            batch=[batch],
            device=self.device,
            seed=self.seed,
            reference=self.reference,
            **{**common, **more},
        )


def machine(report: Report) -> None:
    if report.device == 'cuda':
        report.add('GPU', torch.cuda.get_device_name(), f'torch {torch.__version__}, CUDA {torch.version.cuda}')
    else:
        report.add('dry run', 'CPU', f'torch {torch.__version__}')


@torch.no_grad()
def parity(report: Report) -> None:
    """Against what the published code gave in float32 on a CPU (tests/data)."""
    for name in GOLDENS:
        for dtype in (torch.float32, torch.bfloat16):
            for how in ('eager', 'compiled by block', 'compiled whole'):
                case = f'{name}, {str(dtype).removeprefix("torch.")}, {how}'
                with report.problems(case):
                    net, arguments, options, expected = golden_run(name, report.device)
                    net.to(dtype)
                    if how != 'eager':
                        report.compile(net, regional=how == 'compiled by block')
                    v = net(arguments[0].to(dtype), *arguments[1:], **options)
                    report.add(case, f'{relative_difference(v, expected):.1e}', 'relative error against the golden run')


@torch.no_grad()
def roofline(report: Report) -> None:
    side = 128 if report.dry else 8192
    a, b = (torch.randn(side, side, device=report.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / statistics.median(report.seconds(lambda: a @ b, 0.5))
    report.add(f'product of {side}x{side}, bfloat16', f'{rate / 1e12:.1f} TFLOP/s')
    source = torch.ones(2**10 if report.dry else 2**30, device=report.device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / statistics.median(report.seconds(lambda: target.copy_(source), 0.5))
    report.add('copy', f'{rate / 1e9:.0f} GB/s', 'read and written')


@torch.no_grad()
def forward(report: Report, name: str, batches: tuple[int, ...], compiled: bool = True) -> None:
    """One evaluation of the network in bfloat16; the published one under autocast."""
    shape, net, published = report.network(name, reference=True)
    net = net.to(torch.bfloat16).eval()
    side = report.side(name)
    eager, calls = {}, {}
    for batch in (1, 2) if report.dry else batches:
        x = torch.randn(batch, 3, side, side, device=report.device)
        t = torch.rand(batch, device=report.device)
        cond, _ = shape.conditions(batch, report.device, torch.float32)
        bf16 = x.to(torch.bfloat16)
        label = f'{name}, {side}, batch {batch}'

        def ours(bf16: Tensor = bf16, t: Tensor = t, cond: Tensor = cond) -> Tensor:
            return net(bf16, t, cond)

        def theirs(x: Tensor = x, t: Tensor = t, cond: Tensor = cond) -> Tensor:
            with torch.autocast(report.device, torch.bfloat16):
                return published(x, t, cond)

        calls[label] = (ours, theirs)
        if report.has():
            # It sees torch's products alone.
            net.head.kernel = False
            with FlopCounterMode(display=False) as counter:
                ours()
            net.head.kernel = True
            flops = counter.get_total_flops()
            eager[label] = report.time(f'{label}, eager', ours)
            report.add(f'{label}, eager', f'{flops / eager[label] / 1e12:.1f} TFLOP/s', f'{flops / 1e9:.0f} GFLOP')
        if published is not None and report.has():
            with report.problems(f'{label}, published, eager'):
                report.time(f'{label}, published, eager', theirs, eager.get(label))
        if report.has():
            net.head.kernel = False
            with report.problems(f'{label}, field by operations'):
                report.time(f'{label}, eager, field by operations', ours, eager.get(label))
            net.head.kernel = True
        if report.device == 'cuda' and report.has():
            with report.problems(f'{label}, CUDA graph'):
                report.time(f'{label}, eager in a CUDA graph', graphed(ours), eager.get(label))
    if not compiled:
        return
    if report.has(COMPILE_SECONDS):
        report.compile(net, regional=True)
    for label, (ours, _) in calls.items():
        if report.has(COMPILE_SECONDS):
            with report.problems(f'{label}, compiled by block'):
                start = time.perf_counter()
                ours()
                report.wait()
                took = f'the first took {time.perf_counter() - start:.0f} s'
                report.time(f'{label}, compiled by block', ours, eager.get(label), took)
                if report.device == 'cuda':
                    call = graphed(ours)
                    report.time(f'{label}, compiled by block, in a CUDA graph', call, eager.get(label))


@torch.no_grad()
def published_compiled(report: Report) -> None:
    """The published network through ``torch.compile``, blocks one by one, which is its fastest start."""
    if report.reference is None or not report.has(COMPILE_SECONDS):
        return
    shape, _, published = report.network('xl16', reference=True)
    torch.compiler.reset()
    for block in published.net.blocks:
        block.compile()
    for batch in (1, 32):
        x = torch.randn(batch, 3, report.side('xl16'), report.side('xl16'), device=report.device)
        t = torch.rand(batch, device=report.device)
        cond, _ = shape.conditions(batch, report.device, torch.float32)

        def theirs(x: Tensor = x, t: Tensor = t, cond: Tensor = cond) -> Tensor:
            with torch.autocast(report.device, torch.bfloat16):
                return published(x, t, cond)

        if report.has(COMPILE_SECONDS):
            report.time(f'xl16, batch {batch}, published, compiled by block', theirs)


def graphed(call: Callable[[], Tensor]) -> Callable[[], None]:
    """The call as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def sampling(report: Report) -> None:
    """A whole run with the published settings."""
    steps = 2 if report.dry else 100
    for batch in (1, 8):
        if not report.has(30):
            return
        calls = sample.contenders(report.arguments('xl16', batch, steps=steps))
        ours: float | None = None
        for name, call in calls.items():
            with report.problems(f'xl16, batch {batch}, {name}'):
                memory = report.peak(call)
                start = time.perf_counter()
                call()
                report.wait()
                seconds = time.perf_counter() - start
                detail = memory if ours is None else f'{ours / seconds:.2f}x of ours, {memory}'
                ours = seconds if ours is None else ours
                report.add(f'xl16, {steps} steps, batch {batch}, {name}', f'{seconds:.2f} s', detail)


def training(report: Report) -> None:
    """A step of AdamW with the alignment loss and the EMA, bfloat16 autocast over float32 weights."""
    names = ['ours', 'checkpoint'] + (['published'] if report.reference else [])
    for batch in (32,) if not report.dry else (2,):
        ours: float | None = None
        for name in names:
            case = f'xl16, batch {batch}, {name}'
            if not report.has(20):
                return
            with report.problems(case):
                step = train.step_of(report.arguments('xl16', batch), name)
                step()
                memory = report.peak(step)
                seconds = report.time(case, step, ours, memory)
                ours = seconds if ours is None else ours
                del step
            report.forget()


@torch.no_grad()
def large(report: Report) -> None:
    """Large pictures from a fixed grid of 32x32 tokens: one forward."""
    shape, net, _ = report.network('xxl16')
    net = net.to(torch.bfloat16).eval()
    tokens = 2 if report.dry else 32
    cond, _ = shape.conditions(1, report.device, torch.bfloat16)
    for side in (64, 128) if report.dry else (2048, 4096):
        if report.has():
            with report.problems(f'xxl16, {side}'):
                x = torch.randn(1, 3, side, side, device=report.device, dtype=torch.bfloat16)
                t = torch.rand(1, device=report.device)

                def call(x: Tensor = x, t: Tensor = t) -> Tensor:
                    return net(x, t, cond, token_grid=(tokens, tokens))

                memory = report.peak(call)
                report.time(f'xxl16, {side} from {tokens}x{tokens} tokens', call, detail=memory)


JOBS: list[tuple[str, Callable[[Report], None]]] = [
    ('machine', machine),
    ('parity', parity),
    ('roofline', roofline),
    ('field', field),
    ('forward', lambda report: forward(report, 'xl16', (1, 32))),
    ('sampling', sampling),
    ('training step', training),
    ('forward', lambda report: forward(report, 'l16', (1, 32), compiled=False)),
    ('forward', lambda report: forward(report, 'xxl16', (1, 32), compiled=False)),
    ('large pictures', large),
    ('forward', published_compiled),
]

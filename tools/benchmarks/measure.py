"""Timing in turns, memory in fresh processes, and how both are printed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
"""``cpu`` counts what this process computes, on all its threads: for a machine that others use at the same time."""


def prepare(args: Any) -> None:
    """Set what all measurements of one command share, and check the device."""
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: this machine has no usable GPU; leave it out or use cpu')


def take_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, clock: str, device: str, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each call, run in the order A B A B …; to ``warm`` up, after one round that does not count."""
    seconds = [{name: _seconds(call, clock, device) for name, call in calls.items()} for _ in range(rounds + warm)]
    return {name: [of_round[name] for of_round in seconds[warm:]] for name in calls}


def take_turns_apart(
    make: Callable[[Any, str], Callable[[], Any]], args: Any, names: list[str]
) -> dict[str, list[float]]:
    """As :func:`take_turns`, of ``make(args, name)`` for each name, each in a process of its own.

    So each has its own memory, and its own settings of the C library.
    """
    with ExitStack() as stack:
        pools = {name: stack.enter_context(_one_process()) for name in names}
        for name, pool in pools.items():
            _result(pool.submit(_make_call, make, args, name))
        turns = {name: lambda pool=pool: _result(pool.submit(_time_call, args)) for name, pool in pools.items()}
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(args.rounds + 1)]
    return {name: [seconds[name] for seconds in rounds[1:]] for name in names}


_call: Callable[[], Any]


def _make_call(make: Callable[[Any, str], Callable[[], Any]], args: Any, name: str) -> None:
    global _call
    prepare(args)
    _call = make(args, name)


def _time_call(args: Any) -> float:
    return _seconds(_call, args.clock, args.device)


def _seconds(call: Callable[[], Any], clock: str, device: str) -> float:
    start = CLOCKS[clock]()
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def summary(seconds: list[float]) -> str:
    """Median, and the range it was taken from."""
    return f'{statistics.median(seconds):.4g} ({min(seconds):.4g} to {max(seconds):.4g})'


def ratio(ours: list[float], theirs: list[float]) -> str:
    """How many times faster ours is: the median of the rounds' ratios, and their range."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return f'{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})'


def print_row(*cells: Any) -> None:
    print('| ' + ' | '.join(str(cell) for cell in cells) + ' |', flush=True)


def print_header(*cells: str) -> None:
    print_row(*cells)
    print('|' + '---|' * len(cells))


def machine(args: Any) -> str:
    """One line on what was measured where."""
    if args.device == 'cuda':
        return f'{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.clock} clock'
    model = next((line for line in _lines('/proc/cpuinfo') if line.startswith('model name')), ': unknown CPU')
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f'{torch.get_num_threads()} threads'
    return f'{model.split(":")[1].strip()} ({capability}), {threads}, torch {torch.__version__}, {args.clock} clock'


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """Call ``function`` in a new process, so that nothing else counts in its peak."""
    with _one_process() as pool:
        return _result(pool.submit(function, *args))


def _one_process() -> ProcessPoolExecutor:
    threads = (torch.get_num_threads(),)
    return ProcessPoolExecutor(1, get_context('spawn'), initializer=torch.set_num_threads, initargs=threads)


def _result(future: Future) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        raise ValueError('the process was killed, most likely for want of memory; measure a smaller size') from None


class Peak:
    """A block's peak memory in MiB: ``risen`` above what was there before, and ``whole``. Resident set, or CUDA's."""

    def __init__(self, device: str):
        self.device = device
        self.risen = self.whole = 0.0

    def __enter__(self) -> Peak:
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
        else:
            # What was needed before has a peak of its own: forget it.
            Path('/proc/self/clear_refs').write_text('5')
            self._before = memory('VmRSS')
        return self

    def __exit__(self, *_: Any) -> None:
        self.whole = torch.cuda.max_memory_allocated() / 2**20 if self.device == 'cuda' else memory('VmHWM')
        self.risen = self.whole - self._before


def memory(field: str) -> float:
    """MiB of this process that are resident (VmRSS), or were at most (VmHWM)."""
    if not Path('/proc/self/status').exists():
        raise ValueError('memory is read from /proc, which this system does not have; run it on Linux')
    line = next(line for line in _lines('/proc/self/status') if line.startswith(field))
    return int(line.split()[1]) / 1024


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []

"""The paper's Table 1: what a picture and a training step cost, for each published size."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from . import forward, sample, train
from .measure import (
    in_fresh_process,
    machine,
    prepare,
    print_header,
    print_row,
    ratio,
    summary,
    take_turns,
    take_turns_apart,
)
from .networks import SHAPES, shape_of
from .sample import evaluations


def run(args: Any) -> None:
    """Print a row a network and implementation: one forward, one picture, a training step, and their memory.

    A picture of the published number of steps takes the time of ``--steps`` steps times the ratio of evaluations.
    """
    prepare(args)
    print(f'batch {args.batch[0]}, {args.dtype}, pictures from {args.steps} steps; {machine(args)}')
    print_header(
        'network', 'whose', 'one forward, s', 'one picture, s', 'inference, MiB', 'training step, s', 'training, MiB'
    )
    for name in args.models:
        text = SHAPES[name].text
        one = Namespace(
            **{**vars(args), 'model': name, 'size': 512 if text and args.size is None else args.size or 256}
        )
        row(one, published_steps=25 if text else 100)


def row(args: Any, published_steps: int) -> None:
    has_reference = args.reference and SHAPES[args.model].field_depth
    args.reference = args.reference if has_reference else None
    whose = ['ours', 'published'] if has_reference else ['ours']
    forwards = take_turns(forward.contenders(args, args.batch[0]), args.rounds, args.clock, args.device)
    pictures = take_turns(sample.contenders(args), args.rounds, args.clock, args.device)
    for name, seconds in pictures.items():
        measured, published = (evaluations(shape_of(args), steps, name) for steps in (args.steps, published_steps))
        pictures[name] = [s * published / measured for s in seconds]
    steps: dict[str, list[float]] = {}
    if not args.no_train:
        steps = take_turns_apart(train.step_of, args, whose)
    for name in whose:
        risen, whole = in_fresh_process(sample.peak, args, name)
        memory = '–' if args.no_train else f'{in_fresh_process(train.peak, args, name):.0f}'
        timings = [summary(s[name]) if s else '–' for s in (forwards, pictures, steps)]
        print_row(
            args.model, name, timings[0], timings[1], f'{whole:.0f} ({risen:.0f} above weights)', timings[2], memory
        )
    if has_reference:
        ratios = [ratio(s['ours'], s['published']) if s else '–' for s in (forwards, pictures, steps)]
        print_row(args.model, 'ratio', ratios[0], ratios[1], '', ratios[2], '')

#!/usr/bin/env python
"""Sample pictures from a checkpoint: classes by number or name, or prompts, at any size."""

import argparse
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import options

DECODED = '_decoded'
SAMPLERS = dict(
    adams=dict(type='AdamsFlowSampler'),
    euler=dict(type='EulerFlowSampler', stochastic=False),
    heun=dict(type='HeunFlowSampler'),
    sde=dict(type='EulerFlowSampler', stochastic=True),
    meanflow=dict(type='MeanFlowSampler'),
)

GUIDANCE = {
    'cfg': 'ClassifierFreeGuidance',
    'cfg-zero-star': 'CFGZeroStar',
    'apg': 'AdaptiveProjectedGuidance',
    'auto': 'AutoGuidance',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='published .ckpt, a .pth of tools/train.py, or .safetensors')
    what = parser.add_argument_group('what to draw')
    what.add_argument('--class-label', nargs='+', metavar='CLASS', help='class numbers or names')
    what.add_argument('--class-names', metavar='FILE', help='names of the classes, one a line, if the file has none')
    what.add_argument('--prompt', nargs='+', help='prompts, each in quotes')
    what.add_argument(
        '--prompts', metavar='FILE', help='a file of prompts, one a line; pictures already there are kept'
    )
    what.add_argument('--negative', default='', help='prompt to guide away from (the empty prompt)')
    what.add_argument('--text-encoder', metavar='FOLDER', help='Qwen3 folder in transformers layout')
    what.add_argument(
        '--seed',
        type=options.words,
        nargs='+',
        default=[],
        metavar='N',
        help='seed of the first picture of each class or prompt (0), or the seeds of all of them',
    )
    what.add_argument('--num', type=int, default=1, help='pictures of each class or prompt, seeds counting up (1)')
    shape = parser.add_argument_group('size')
    shape.add_argument('--size', type=options.size, metavar='HxW', help='size in pixels; by default as trained')
    shape.add_argument(
        '--token-grid',
        type=options.size,
        metavar='RxC',
        help='fixed grid of tokens, the field sampled more finely (32x32)',
    )
    shape.add_argument('--decode', type=options.size, metavar='HxW', help='also render the sampled field at this size')
    shape.add_argument('--region', type=options.region, metavar='T,L,B,R', help='only this region of --decode')
    shape.add_argument('--grain', type=float, default=0.0, help='share of independent noise in --decode (0)')
    shape.add_argument(
        '--blend',
        type=float,
        metavar='PIXELS',
        help='join patches over so many pixels of the trained size on both sides of a border, 0 (hard borders) to 1; '
        'by default 0 with --token-grid, the published rule, and 0.5 in --decode',
    )
    shape.add_argument(
        '--save-field', action='store_true', help="also write each batch's field, for tools/render_field.py"
    )
    solver = parser.add_argument_group('solver; defaults are those of the checkpoint')
    solver.add_argument('--sampler', choices=list(SAMPLERS))
    solver.add_argument('--steps', type=int)
    solver.add_argument('--order', type=int, help='order of the Adams solver, 1 to 4')
    solver.add_argument('--guidance', type=float, help='guidance scale')
    solver.add_argument('--guidance-type', choices=list(GUIDANCE), help='how to guide')
    solver.add_argument(
        '--guidance-options', nargs='+', default=[], metavar='KEY=VALUE', help='of --guidance-type, such as eta=0.5'
    )
    solver.add_argument(
        '--guidance-network', metavar='FILE', help='the weaker network that --guidance-type auto leads away from'
    )
    solver.add_argument('--interval', type=options.interval, metavar='MIN,MAX', help='times between which to guide')
    solver.add_argument('--timeshift', type=float)
    solver.add_argument(
        '--planned', action='store_true', help='the times and guided steps that the file has for so many steps'
    )
    run = parser.add_argument_group('running and writing')
    run.add_argument('--out', type=Path, default=Path('samples'), help='folder for the pictures (samples)')
    run.add_argument('--grid', action='store_true', help='also write grid.png with all pictures')
    run.add_argument('--gif', action='store_true', help='also write trajectory.gif, the denoising of all pictures')
    run.add_argument('--weights', choices=['ema', 'raw'], default='ema')
    run.add_argument('--lora', metavar='FILE[:STRENGTH]', help='low-rank adapter to apply')
    run.add_argument('--batch-size', type=int, default=8, help='pictures sampled at once (8)')
    options.add_device(run)
    options.add_compute(run)
    options.add_imports(run)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from pixnerd_plugin import load_pipeline
    from pixnerd_plugin.checkpoints.lora import parse_lora
    from pixnerd_plugin.functional.noise import draw_noise, image_generators
    from pixnerd_plugin.images import image_grid, save_png, to_uint8

    check(args)
    options.import_parts(args, args.checkpoint)
    seeds = read_seeds(args)
    wanted = read_prompts(args.prompts) if args.prompts else args.class_label or args.prompt
    lora, strength = parse_lora(args.lora) if args.lora else (None, 1.0)
    pipe = load_pipeline(
        args.checkpoint,
        args.text_encoder,
        args.device,
        args.dtype,
        weights=args.weights,
        class_names=args.class_names,
        lora=lora,
        lora_strength=strength,
        packs=args.pack,
    )
    if args.dtype == 'auto':
        print(f'computing in {str(next(pipe.net.parameters()).dtype).removeprefix("torch.")} on {pipe.device}')
    if pipe.is_text == bool(args.class_label):
        draws = 'prompts, not classes; use --prompt' if pipe.is_text else 'classes, not prompts; use --class-label'
        raise ValueError(f'{args.checkpoint} draws {draws}')
    if args.class_label:
        wanted = split_labels(wanted, pipe.conditioner)
    pipe.check(wanted, seeds, args.size, args.token_grid)
    sampler = make_sampler(args, pipe.sampler)
    if args.planned:
        sampler = pipe.plan(sampler)
    height, width = pipe.size_of(args.size)

    jobs = make_jobs(args, pipe, wanted, seeds, sampler)
    todo = [job for job in jobs if not (args.prompts and is_done(job, args))]
    if len(todo) < len(jobs):
        print(f'{len(jobs) - len(todo)} of {len(jobs)} pictures are there already')
    frames, pictures = [], []
    with tqdm(total=len(todo) * sampler.num_steps, unit='step', disable=None) as bar:
        for start in range(0, len(todo), args.batch_size):
            batch = todo[start : start + args.batch_size]
            numbers = [job['seed'] for job in batch]
            steps = []
            if args.gif:
                shape = (pipe.net.in_channels, height, width)
                steps.append(to_uint8(draw_noise(image_generators(numbers), shape)))

            def after(step, steps=steps):
                bar.update(len(step.x))
                if args.gif:
                    steps.append(to_uint8(step.denoised))

            result = pipe.sample(
                [job['condition'] for job in batch],
                numbers,
                args.size,
                sampler=sampler,
                negative_prompt=args.negative,
                token_grid=args.token_grid,
                record_field=args.decode is not None or args.save_field,
                callback=after,
                **blending(args),
            )
            images, field = result if isinstance(result, tuple) else (result, None)
            if args.save_field:
                field.save(batch[0]['path'].with_suffix('.safetensors'))
            if args.decode:
                decoded = field.decode(args.decode, args.region, args.grain, seeds[0], **blending(args))
                save(batch, to_uint8(decoded), suffix=DECODED)
            # The picture last: where it is, the rest is too, for those who resume.
            save(batch, to_uint8(images))
            if args.grid:
                pictures.extend(to_uint8(images))
            frames.append(steps)
    columns = len(seeds) if len(seeds) > 1 else None
    if args.grid and pictures:
        save_png(args.out / 'grid.png', image_grid(stack(pictures), columns))
    if args.gif and todo:
        save_gif(args.out / 'trajectory.gif', frames, columns)
    print(f'{len(todo)} pictures of {height}x{width} in {args.out}')


def check(args: argparse.Namespace) -> None:
    """Refuse what does not fit together before anything is loaded."""
    given = [name for name in ('class_label', 'prompt', 'prompts') if getattr(args, name)]
    if len(given) != 1:
        raise ValueError('give one of --class-label, --prompt and --prompts: what is to be drawn?')
    if args.prompt and not all(prompt.strip() for prompt in args.prompt):
        raise ValueError('--prompt: one of the prompts is empty; write what is to be drawn, in quotes')
    for name in ('num', 'batch_size'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name.replace("_", "-")} must be at least 1, got {getattr(args, name)}')
    if args.region and not args.decode:
        raise ValueError('--region is a region of the picture that --decode HxW renders; give both')
    if args.planned and not (args.timeshift is None and args.interval is None):
        raise ValueError('--planned takes times and guided steps of the file; leave out --timeshift and --interval')


def read_seeds(args: argparse.Namespace) -> list[int]:
    """The seeds that each class or prompt is drawn with."""
    given = [text for texts in args.seed for text in texts] or ['0']
    try:
        seeds = [int(text) for text in given]
    except ValueError:
        raise ValueError(f'--seed {" ".join(given)}: seeds are whole numbers') from None
    if len(seeds) == 1:
        return list(range(seeds[0], seeds[0] + args.num))
    if args.num > 1:
        raise ValueError(f'--num {args.num} counts up from one --seed, and {len(seeds)} are given; leave one out')
    if len(set(seeds)) < len(seeds):
        raise ValueError(f'--seed {" ".join(given)}: one is given twice, which would draw the same picture twice')
    return seeds


def split_labels(given: list[str], conditioner) -> list[str]:
    """``'cat,dog'`` is two classes, unless one has that name."""
    labels = []
    for text in given:
        try:
            conditioner([text])
        except ValueError:
            labels += options.words(text) if ',' in text else [text]
        else:
            labels.append(text)
    return labels


def make_sampler(args: argparse.Namespace, sampler):
    """The sampler of the checkpoint, with what the command line changes."""
    settings = dict(
        num_steps=args.steps,
        order=args.order,
        guidance_scale=args.guidance,
        guidance_interval=args.interval,
        timeshift=args.timeshift,
        guidance=make_guidance(args),
    )
    changed = {name: value for name, value in settings.items() if value is not None}
    sampler = sampler.replace(**SAMPLERS.get(args.sampler, {}))
    if args.order and 'order' not in sampler.stored:
        raise ValueError('--order is of the Adams solver; add --sampler adams')
    return sampler.replace(**changed)


def blending(args: argparse.Namespace) -> dict[str, float]:
    """How patches are joined, as arguments of sampling and decoding, which have defaults of their own."""
    return {} if args.blend is None else dict(blend=args.blend)


def make_guidance(args: argparse.Namespace):
    """The guidance that the command line asks for, or None: that of the checkpoint."""
    from pixnerd_plugin.registry import MODELS

    if bool(args.guidance_network) != (args.guidance_type == 'auto'):
        raise ValueError('--guidance-network FILE and --guidance-type auto go together; give both, or neither')
    if args.guidance_type is None:
        if args.guidance_options:
            raise ValueError('--guidance-options are those of a --guidance-type; give both')
        return None
    kind = MODELS.get(GUIDANCE[args.guidance_type])
    arguments = {}
    for text in args.guidance_options:
        name, _, value = text.partition('=')
        if name not in kind.stored:
            known = ', '.join(kind.stored) or 'none'
            raise ValueError(f'--guidance-options {text}: --guidance-type {args.guidance_type} has {known}')
        try:
            arguments[name] = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(f'--guidance-options {text}: not KEY=VALUE with a number, such as {name}=1') from None
        kind.stored[name].check(f'--guidance-options {name}', arguments[name])
    if args.guidance_network:
        if not Path(args.guidance_network).exists():
            raise FileNotFoundError(f'--guidance-network {args.guidance_network} does not exist')
        arguments['network'] = args.guidance_network
    return kind(**arguments)


def make_jobs(args: argparse.Namespace, pipe, wanted: list[str], seeds: list[int], sampler) -> list[dict]:
    """One picture each: condition, seed, file, and the parameters that go into it.

    A class or prompt that is asked for again goes on with the seeds after those it had: no two pictures are the same.
    """
    weights = f'{args.weights} {digest(pipe.net)}'
    jobs, times, names = [], Counter(), {}
    for index, condition in enumerate(wanted):
        if args.class_label:
            key = int(pipe.conditioner([condition])[0])
            name = re.sub(r'\W+', '_', condition)
            while names.setdefault(name.casefold(), key) != key:
                name = f'{name}_{key}'  # another class, whose name differs in what file names cannot hold
        else:
            key, name = (index if args.prompts else condition), f'{index:05d}'
        again, times[key] = times[key], times[key] + 1
        if again and len(seeds) > 1 and seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            raise ValueError(f'{condition!r} is asked for twice with the same seeds; ask for it once')
        for seed in (seed + again * len(seeds) for seed in seeds):
            parameters = dict(
                condition=condition,
                seed=seed,
                size=list(pipe.size_of(args.size)),
                sampler=sampler.config(),
                checkpoint=Path(args.checkpoint).name,
                weights=weights,
            )
            optional = dict(
                negative=args.negative,
                token_grid=args.token_grid,
                lora=args.lora,
                guidance_network=args.guidance_network and Path(args.guidance_network).name,
                decode=args.decode,
                region=args.region,
                grain=args.grain,
            )
            parameters |= {key: value for key, value in optional.items() if value} | blending(args)
            path = args.out / f'{name}_seed{seed}.png'
            jobs.append(dict(condition=condition, seed=seed, path=path, parameters=json.dumps(parameters)))
    return jobs


def read_prompts(path: str) -> list[str]:
    """The lines of a UTF-8 file that are not blank."""
    from pixnerd_plugin.formats.text_file import read_lines

    return read_lines(path, 'prompts, one a line')


def digest(net) -> str:
    """Eight hexadecimal digits of a number from each tensor: another training step, or another model, has others."""
    import torch

    values = torch.stack([parameter.detach().flatten()[0].float() for parameter in net.parameters()])
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()[:8]


def is_done(job: dict, args: argparse.Namespace) -> bool:
    """Whether the picture is there, drawn with the same parameters, and its decoding if one is wanted."""
    from PIL import Image

    if args.decode and not with_suffix(job['path'], DECODED).is_file():
        return False
    try:
        with Image.open(job['path']) as image:
            return image.info.get('pixnerd') == job['parameters']
    except OSError:
        return False


def with_suffix(path: Path, suffix: str) -> Path:
    return path.with_stem(path.stem + suffix)


def save(jobs: list[dict], images, suffix: str = '') -> None:
    from pixnerd_plugin.images import save_png

    for job, image in zip(jobs, images, strict=True):
        save_png(with_suffix(job['path'], suffix), image, dict(pixnerd=job['parameters']))


def stack(pictures: list):
    import numpy as np

    return np.stack(pictures)


def save_gif(path: Path, frames: list, columns: int | None) -> None:
    """Write the steps of all pictures as one animation, holding the last frame."""
    from PIL import Image

    from pixnerd_plugin.formats.atomic import atomic_path
    from pixnerd_plugin.images import image_grid

    grids = [
        Image.fromarray(image_grid(stack([image for batch in step for image in batch]), columns))
        for step in zip(*frames, strict=True)
    ]
    with atomic_path(path) as temporary:
        grids[0].save(
            temporary,
            format='GIF',
            save_all=True,
            append_images=grids[1:],
            duration=[80] * (len(grids) - 1) + [1500],
            loop=0,
        )


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

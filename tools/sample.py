#!/usr/bin/env python
"""Sample pictures from a checkpoint: classes by number or name, or prompts, at any size."""

import argparse
import hashlib
import json
import re
from pathlib import Path

DECODED = '_decoded'


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or 0 in map(int, match.groups()):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 512x768')
    return int(match[1]), int(match[2])


def numbers(count: int, kind: type):
    def parse(text: str) -> tuple:
        parts = text.split(',')
        try:
            values = tuple(kind(part) for part in parts)
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f'{text!r} is not {count} numbers separated by commas')
        return values

    return parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='published .ckpt, a .pth of tools/train.py, or .safetensors')
    what = parser.add_argument_group('what to draw')
    what.add_argument('--class-label', nargs='+', metavar='CLASS', help='class numbers or names; one picture each')
    what.add_argument('--class-names', metavar='FILE', help='names of the classes, one a line, if the file has none')
    what.add_argument('--prompt', nargs='+', help='prompts; one picture each')
    what.add_argument(
        '--prompts', metavar='FILE', help='a file of prompts, one a line; pictures already there are kept'
    )
    what.add_argument('--negative', default='', help='prompt to guide away from (the empty prompt)')
    what.add_argument('--text-encoder', metavar='FOLDER', help='Qwen3 folder in transformers layout')
    what.add_argument('--seed', type=int, default=0, help='seed of the first picture of each class or prompt (0)')
    what.add_argument('--num', type=int, default=1, help='pictures of each class or prompt, seeds counting up (1)')
    shape = parser.add_argument_group('size')
    shape.add_argument('--size', type=size, metavar='HxW', help='size in pixels; by default as trained')
    shape.add_argument(
        '--token-grid', type=size, metavar='RxC', help='fixed grid of tokens, the field sampled more finely (32x32)'
    )
    shape.add_argument('--decode', type=size, metavar='HxW', help='also render the sampled field at this size')
    shape.add_argument('--region', type=numbers(4, int), metavar='T,L,B,R', help='only this region of --decode')
    shape.add_argument('--grain', type=float, default=0.0, help='share of independent noise in --decode (0)')
    shape.add_argument(
        '--save-field', action='store_true', help="also write each batch's field, for tools/render_field.py"
    )
    solver = parser.add_argument_group('solver; defaults are those of the checkpoint')
    solver.add_argument('--sampler', choices=['adams', 'euler', 'heun', 'sde'])
    solver.add_argument('--steps', type=int)
    solver.add_argument('--order', type=int, help='order of the Adams solver, 1 to 4')
    solver.add_argument('--guidance', type=float, help='guidance scale')
    solver.add_argument('--interval', type=numbers(2, float), metavar='MIN,MAX', help='times between which to guide')
    solver.add_argument('--timeshift', type=float)
    run = parser.add_argument_group('running and writing')
    run.add_argument('--out', type=Path, default=Path('samples'), help='folder for the pictures (samples)')
    run.add_argument('--grid', action='store_true', help='also write grid.png with all pictures')
    run.add_argument('--gif', action='store_true', help='also write trajectory.gif, the denoising of all pictures')
    run.add_argument('--weights', choices=['ema', 'raw'], default='ema')
    run.add_argument('--lora', metavar='FILE[:STRENGTH]', help='low-rank adapter to apply')
    run.add_argument('--batch-size', type=int, default=8, help='pictures sampled at once (8)')
    run.add_argument('--device', help="'cuda', 'cpu', ...; by default a GPU if there is one")
    run.add_argument('--dtype', choices=['float32', 'bfloat16'], help="of the network; by default the checkpoint's")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from pixnerd_plugin.checkpoints import load_backbone, read_checkpoint
    from pixnerd_plugin.functional.noise import draw_noise, picture_generators
    from pixnerd_plugin.images import image_grid, save_png, to_uint8

    check(args)
    net = load_backbone(args.checkpoint, args.weights)
    metadata, weights = read_checkpoint(args.checkpoint, args.weights).metadata, digest(net)
    if args.lora:
        from pixnerd_plugin.checkpoints.lora import apply_lora

        path, _, strength = args.lora.partition(':')
        apply_lora(net, path, float(strength or 1))
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    net = net.to(device, getattr(torch, args.dtype) if args.dtype else None).eval()
    conditioner = make_conditioner(args, net, metadata).to(device)
    sampler = make_sampler(args, net, metadata)
    height, width = picture_size(args, net, metadata)

    jobs = make_jobs(args, sampler, (height, width), weights)
    todo = [job for job in jobs if not (args.prompts and is_done(job, args))]
    if len(todo) < len(jobs):
        print(f'{len(jobs) - len(todo)} of {len(jobs)} pictures are there already')
    null = conditioner([args.negative]) if args.negative else conditioner.null(1)
    frames, pictures = [], []
    with tqdm(total=len(todo) * sampler.num_steps, unit='step', disable=None) as bar:
        for start in range(0, len(todo), args.batch_size):
            batch = todo[start : start + args.batch_size]
            generators = picture_generators([job['seed'] for job in batch])
            noise = draw_noise(generators, (net.in_channels, height, width)).to(device)
            steps = [noise]

            def after(step, steps=steps):
                bar.update(len(step.x))
                if args.gif:
                    steps.append(step.denoised)

            result = sampler.sample(
                net,
                noise,
                conditioner([job['condition'] for job in batch]),
                null,
                token_grid=args.token_grid,
                record_field=args.decode is not None or args.save_field,
                callback=after,
                generators=generators,
            )
            images, field = result if isinstance(result, tuple) else (result, None)
            require_finite(images, args.checkpoint)
            if args.save_field:
                field.save(batch[0]['path'].with_suffix('.safetensors'))
            if args.decode:
                decoded = field.decode(args.decode, args.region, grain=args.grain, seed=args.seed)
                save(batch, to_uint8(decoded), suffix=DECODED)
            # The picture last: where it is, the rest is too, for those who resume.
            save(batch, to_uint8(images))
            if args.grid:
                pictures.extend(to_uint8(images))
            frames.append([to_uint8(step) for step in steps] if args.gif else [])
    if args.grid and pictures:
        save_png(args.out / 'grid.png', image_grid(stack(pictures), args.num if args.num > 1 else None))
    if args.gif and todo:
        save_gif(args.out / 'trajectory.gif', frames, args.num if args.num > 1 else None)
    print(f'{len(todo)} pictures of {height}x{width} in {args.out}')


def check(args: argparse.Namespace) -> None:
    """Refuse what does not fit together before anything is loaded."""
    given = [name for name in ('class_label', 'prompt', 'prompts') if getattr(args, name)]
    if len(given) != 1:
        raise ValueError('give one of --class-label, --prompt and --prompts: what is to be drawn?')
    for name in ('num', 'batch_size'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name.replace("_", "-")} must be at least 1, got {getattr(args, name)}')
    if args.region and not args.decode:
        raise ValueError('--region is a region of the picture that --decode HxW renders; give both')
    if args.device and args.device.startswith('cuda'):
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f'--device {args.device}: this machine has no usable GPU; leave it out or use cpu')


def make_conditioner(args, net, metadata):
    from pixnerd_plugin.models.conditioners import LabelConditioner, Qwen3TextEncoder

    if net.text_dim is None:
        if not args.class_label:
            raise ValueError(f'{args.checkpoint} draws classes, not prompts; use --class-label')
        return LabelConditioner(net.num_classes, args.class_names or metadata.get('class_names'))
    if args.class_label:
        raise ValueError(f'{args.checkpoint} draws prompts, not classes; use --prompt')
    if not args.text_encoder:
        raise ValueError('prompts need --text-encoder FOLDER, the Qwen3 model the weights were trained with')
    encoder = Qwen3TextEncoder(args.text_encoder, net.text_length)
    if encoder.dim != net.text_dim:
        raise ValueError(
            f'--text-encoder {args.text_encoder} gives embeddings of width {encoder.dim}, and {args.checkpoint} '
            f'was trained with {net.text_dim}'
        )
    return encoder


def make_sampler(args, net, metadata):
    """The sampler of the checkpoint's metadata, else of the published variant, with what the command line changes."""
    from pixnerd_plugin.registry import MODELS

    published = dict(type='EulerFlowSampler') if net.text_dim is None else dict(type='AdamsFlowSampler')
    config = dict(metadata.get('sampling') or published)
    if args.sampler:
        names = dict(adams='AdamsFlowSampler', euler='EulerFlowSampler', heun='HeunFlowSampler', sde='EulerFlowSampler')
        common = ('num_steps', 'guidance_scale', 'guidance_interval', 'timeshift')
        config = dict(type=names[args.sampler], **{name: config[name] for name in common if name in config})
        if args.sampler == 'sde':
            config['stochastic'] = True
    options = dict(
        num_steps=args.steps,
        order=args.order,
        guidance_scale=args.guidance,
        guidance_interval=args.interval,
        timeshift=args.timeshift,
    )
    if args.order and config['type'] != 'AdamsFlowSampler':
        raise ValueError('--order is of the Adams solver; add --sampler adams')
    return MODELS.build({**config, **{name: value for name, value in options.items() if value is not None}})


def picture_size(args, net, metadata) -> tuple[int, int]:
    if args.size:
        return args.size
    trained = metadata.get('resolution') or (16 if net.text_dim is None else 32) * net.patch_size
    return trained, trained


def make_jobs(args, sampler, shape: tuple[int, int], weights: str) -> list[dict]:
    """One picture each: condition, seed, file, and the parameters that go into it."""
    conditions = read_prompts(args.prompts) if args.prompts else args.class_label or args.prompt
    jobs = []
    for index, condition in enumerate(conditions):
        name = f'{index:05d}' if net_is_text(args) else re.sub(r'\W+', '_', condition)
        for seed in range(args.seed, args.seed + args.num):
            parameters = dict(
                condition=condition,
                seed=seed,
                size=list(shape),
                sampler=sampler.config(),
                checkpoint=Path(args.checkpoint).name,
                weights=f'{args.weights} {weights}',
            )
            optional = dict(
                negative=args.negative,
                token_grid=args.token_grid,
                lora=args.lora,
                decode=args.decode,
                region=args.region,
                grain=args.grain,
            )
            parameters |= {key: value for key, value in optional.items() if value}
            path = args.out / f'{name}_seed{seed}.png'
            jobs.append(dict(condition=condition, seed=seed, path=path, parameters=json.dumps(parameters)))
    return jobs


def read_prompts(path: str) -> list[str]:
    """The lines of a UTF-8 file that are not blank."""
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(f'--prompts {path}: byte {error.start} is not UTF-8; save the file as UTF-8') from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f'--prompts {path}: the file has no prompts; write one a line')
    return prompts


def digest(net) -> str:
    """Eight hexadecimal digits of a number from each tensor: another training step, or another model, has others."""
    import torch

    values = torch.stack([parameter.detach().flatten()[0].float() for parameter in net.parameters()])
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()[:8]


def net_is_text(args) -> bool:
    return not args.class_label


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


def require_finite(images, checkpoint: str) -> None:
    if not images.isfinite().all():
        raise ValueError(f'{checkpoint}: the network gave NaN or infinity; try --dtype float32 or a lower --guidance')


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

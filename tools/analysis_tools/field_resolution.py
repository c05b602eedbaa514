#!/usr/bin/env python
"""Compare ways of drawing larger than trained: the paper's, a finer field, and one trained at several densities.

prepare: photographs to training and held-out squares. compare: two checkpoints, trained at one and at several
densities, against real larger originals (numbers) and side by side (figures). docs/resolution.md has the commands.
"""

import argparse
from pathlib import Path

TIMES = (0.3, 0.5, 0.7, 0.9)
SCALES = (2, 4)
ROWS = 2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    prepare = commands.add_parser('prepare', help='cut centre squares; every tenth picture is held out')
    prepare.add_argument('folder', help='photographs, in any sub-folders')
    prepare.add_argument('out', type=Path, help='gets train/photo and test/photo')
    prepare.add_argument('--side', type=int, default=192, help='side of the squares in pixels (192)')
    compare = commands.add_parser('compare', help='measure and draw')
    compare.add_argument('single', help='checkpoint trained at one density')
    compare.add_argument('multi', help='checkpoint trained at several densities')
    compare.add_argument('--data', default='digits', help="'digits', or a folder of held-out photographs (digits)")
    compare.add_argument('--out', type=Path, default=Path('work_dirs/resolution'), help='folder for the figures')
    compare.add_argument('--num', type=int, default=48, help='held-out pictures to measure on (48)')
    compare.add_argument('--samples', type=int, default=16, help='pictures to sample for the seams (16)')
    compare.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def prepare(folder: str, out: Path, side: int) -> None:
    from PIL import Image, ImageOps
    from tqdm import tqdm

    from pixnerd_plugin.datasets.image_folder import list_pictures

    paths = list_pictures(folder)
    if not paths:
        raise ValueError(f'no pictures below {folder}')
    used = 0
    for index, path in enumerate(tqdm(paths, disable=None)):
        with Image.open(path) as picture:
            if min(picture.size) < side:
                continue
            square = ImageOps.fit(picture.convert('RGB'), (side, side), Image.Resampling.LANCZOS)
        place = out / ('test' if index % 10 == 0 else 'train') / 'photo' / f'{index:05d}.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        square.save(place)
        used += 1
    print(f'{used} of {len(paths)} pictures are at least {side} pixels wide and high; they are in {out}')


def compare(args: argparse.Namespace) -> None:
    import torch

    from pixnerd_plugin.checkpoints import load_backbone, read_checkpoint
    from pixnerd_plugin.registry import MODELS

    single, multi = (load_backbone(path).float().eval() for path in (args.single, args.multi))
    metadata = read_checkpoint(args.multi).metadata
    base_size, sampler = metadata['resolution'], MODELS.build(metadata['sampling'])
    images, labels = load_originals(args.data, base_size * max(SCALES), args.num)
    torch.manual_seed(args.seed)
    print(f'One step on {len(images)} held-out pictures, {base_size} pixels wide: PSNR in dB at the finer pixels\n')
    with torch.no_grad():
        print_psnr(single, multi, images, labels, base_size)
        draw(single, multi, sampler, base_size, args)


def load_originals(data: str, size: int, num: int):
    """Held-out pictures ``(num, 3, size, size)`` in [-1, 1] and their labels."""
    import torch

    from pixnerd_plugin.datasets import DigitsDataset, ImageFolder

    if data == 'digits':
        dataset = DigitsDataset(size=size, split='test', pipeline=[dict(type='PackInputs')])
    else:
        pipeline = [dict(type='LoadRGB'), dict(type='ADMCenterCrop', size=size), dict(type='PackInputs')]
        dataset = ImageFolder(data_root=data, pipeline=pipeline)
    items = [dataset[i] for i in range(min(num, len(dataset)))]
    images = torch.stack([item['inputs'] for item in items]).float() / 127.5 - 1
    return images, torch.tensor([item['data_samples']['label'] for item in items])


def print_psnr(single, multi, images, labels, base_size: int) -> None:
    """Print a table: the mean PSNR of ``x_t + (1 - t) v`` against the originals, by scale, method and time."""
    import torch
    import torch.nn.functional as F

    print('| size | fine pixels start from | method | ' + ' | '.join(f't = {t}' for t in TIMES) + ' |')
    print('|---|---|---|' + '---|' * len(TIMES))
    for scale in SCALES:
        original = F.interpolate(images, size=(base_size * scale,) * 2, mode='area')
        base = F.interpolate(images, size=(base_size, base_size), mode='area')
        guess = upsample(base, scale)
        coarse = torch.randn_like(base)
        fine = finer_noise(coarse, scale)
        rows = {('nothing', 'bicubic of the estimate at base size'): []}
        for t in TIMES:
            estimate = one_step(single, base, coarse, t, labels)
            rows['nothing', 'bicubic of the estimate at base size'].append(psnr(upsample(estimate, scale), original))
            for start, picture in (('the original', original), ('bicubic', guess)):
                methods = {
                    "the paper's, one density": paper_step(
                        single, picture, fine, t, labels, base_size // single.patch_size
                    ),
                    'finer field, one density': one_step(single, base, coarse, t, labels, picture, scale),
                    'finer field, several densities': one_step(multi, base, coarse, t, labels, picture, scale),
                }
                for method, estimate in methods.items():
                    rows.setdefault((start, method), []).append(psnr(estimate, original))
        for (start, method), values in rows.items():
            print(f'| {scale}x | {start} | {method} | ' + ' | '.join(f'{value:.1f}' for value in values) + ' |')
        print(f'| {scale}x | - | bicubic of the true base picture | ' + f'{psnr(guess, original):.1f} | ' * len(TIMES))


def one_step(net, base, noise, t: float, labels, picture=None, scale: int = 1):
    """The estimate of the image at the pixels of ``picture``: tokens from the base size, centres, continuous noise."""
    import torch

    from pixnerd_plugin.models.heads.coordinates import pixel_positions
    from pixnerd_plugin.sampling.noise import continuous_noise

    picture = base if picture is None else picture
    at = (torch.arange(base.shape[-1] * scale) + 0.5) / scale - 0.5
    pixels = t * picture + (1 - t) * continuous_noise(noise, at, at)
    positions = pixel_positions(net.patch_size * scale, net.patch_size, 'centers')
    times = torch.full((len(base),), t)
    x = t * base + (1 - t) * noise
    return pixels + (1 - t) * net(x, times, labels, pixels=pixels, positions=(positions, positions))


def paper_step(net, picture, noise, t: float, labels, patches: int):
    """The same by the paper's rule: tokens from the large noisy picture, corners, independent noise."""
    import torch

    from pixnerd_plugin.models.heads.coordinates import pixel_positions

    x = t * picture + (1 - t) * noise
    positions = pixel_positions(picture.shape[-1] // patches, net.patch_size, 'corners')
    times = torch.full((len(picture),), t)
    return x + (1 - t) * net(x, times, labels, token_grid=(patches, patches), positions=(positions, positions))


def finer_noise(noise, scale: int):
    """Independent noise of the finer picture that, resampled by nearest neighbour, is ``noise``: the same picture."""
    import torch

    fine = torch.randn(*noise.shape[:2], noise.shape[2] * scale, noise.shape[3] * scale)
    fine[..., ::scale, ::scale] = noise
    return fine


def upsample(images, scale: int):
    import torch.nn.functional as F

    return F.interpolate(images, scale_factor=scale, mode='bicubic')


def psnr(images, originals) -> float:
    """Mean over pictures of the peak signal to noise ratio, in dB; pixels are cut to [-1, 1]."""
    error = (images.clamp(-1, 1) - originals).square().flatten(1).mean(1)
    return (10 * (4 / error).log10()).mean().item()


def draw(single, multi, sampler, base_size: int, args: argparse.Namespace) -> None:
    """Sample, print how visible the patches are, and write the two figures."""
    import torch

    from pixnerd_plugin.sampling.noise import draw_noise, picture_generators

    noise = draw_noise(picture_generators(range(args.seed, args.seed + args.samples)), (3, base_size, base_size))
    labels, null = torch.arange(args.samples) % single.num_classes, torch.tensor([single.num_classes])
    image, field = sampler.sample(single, noise, labels, null, record_field=True)
    image_multi, field_multi = sampler.sample(multi, noise, labels, null, record_field=True)
    patches = base_size // single.patch_size

    print('\n| size | method | seams |\n|---|---|---|')
    for scale in SCALES:
        size = (base_size * scale,) * 2
        single.head.alignment = 'corners'
        paper = sampler.sample(single, finer_noise(noise, scale), labels, null, token_grid=(patches, patches))
        single.head.alignment = 'centers'
        ways = {
            'bicubic': upsample(image, scale),
            "the paper's way": paper,
            'field, corners': field.decode(size, alignment='corners'),
            'field, centers': field.decode(size),
            'field, several densities': field_multi.decode(size),
        }
        for name, pictures in ways.items():
            print(f'| {scale}x | {name} | {seams(pictures, single.patch_size * scale):.2f} |')

    columns = {'sampled at 1x': repeat(image, max(SCALES)), **ways}
    columns['several densities, 1x'] = repeat(image_multi, max(SCALES))
    order = [*list(columns)[:-2], 'several densities, 1x', 'field, several densities']
    save_figure(args.out / 'ways.png', [columns[name][:ROWS] for name in order], order)
    sizes = (1, 2, 4, 8)
    rendered = [repeat(field_multi.decode((base_size * s,) * 2), max(sizes) // s)[:ROWS] for s in sizes]
    save_figure(args.out / 'sizes.png', rendered, [f'{s}x' for s in sizes])


def repeat(images, factor: int):
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def seams(images, patch: int) -> float:
    """Mean step between neighbouring pixels across patch borders, as a multiple of that inside patches."""
    import torch

    across, inside = [], []
    for axis in (2, 3):
        steps = images.clamp(-1, 1).diff(dim=axis).abs().transpose(axis, -1)
        border = torch.arange(steps.shape[-1]) % patch == patch - 1
        across.append(steps[..., border].mean())
        inside.append(steps[..., ~border].mean())
    return (sum(across) / sum(inside)).item()


def save_figure(path: Path, columns: list, titles: list[str]) -> None:
    """Write pictures ``(rows, 3, H, W)`` as columns under their titles, with a palette, which keeps the file small."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from pixnerd_plugin.atomic import atomic_path
    from pixnerd_plugin.images import image_grid, to_uint8

    pictures = np.stack([to_uint8(column)[row] for row in range(len(columns[0])) for column in columns])
    grid = image_grid(pictures, len(columns), gap=4)
    header = 16
    figure = Image.new('RGB', (grid.shape[1], grid.shape[0] + header), 'white')
    figure.paste(Image.fromarray(grid), (0, header))
    for index, title in enumerate(titles):
        place = (index * (pictures.shape[2] + 4), 1)
        ImageDraw.Draw(figure).text(place, title, 'black', ImageFont.load_default(11))
    with atomic_path(path) as temporary:
        figure.quantize(64).save(temporary, format='PNG', optimize=True)
    print(f'figure: {path}')


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        if arguments.command == 'prepare':
            prepare(arguments.folder, arguments.out, arguments.side)
        else:
            compare(arguments)

"""Numbers against real larger originals: one step on held-out pictures, and what whole pictures look like."""

import torch
import torch.nn.functional as F
from resolution_ways import finer_noise, fixed_tokens, one_step, paper_sample, paper_step, psnr, upsample

from pixnerd_plugin.datasets import DigitsDataset, ImageFolder
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.functional.seams import border_steps, seam_ratio

TIMES = (0.3, 0.5, 0.7, 0.9)
SCALES = (2, 4, 8)
BLENDS = (0.0, 0.5, 1.0)


def load_originals(data: str, size: int, num: int):
    """Held-out pictures ``(num, 3, size, size)`` in [-1, 1] and their labels."""
    if data == 'digits':
        dataset = DigitsDataset(size=size, split='test', pipeline=[dict(type='PackInputs')])
    else:
        pipeline = [dict(type='LoadRGB'), dict(type='ADMCenterCrop', size=size), dict(type='PackInputs')]
        dataset = ImageFolder(data_root=data, pipeline=pipeline)
    items = [dataset[i] for i in range(min(num, len(dataset)))]
    images = torch.stack([item['inputs'] for item in items]).float() / 127.5 - 1
    return images, torch.tensor([item['data_samples']['label'] for item in items])


def shrink(images, size: int):
    return F.interpolate(images, size=(size, size), mode='area')


def print_psnr(single, multi, images, labels, base_size: int) -> None:
    """Print a table: the mean PSNR of ``x_t + (1 - t) v`` against the originals, by scale, method and time."""
    print('| size | fine pixels start from | method | ' + ' | '.join(f't = {t}' for t in TIMES) + ' |')
    print('|---|---|---|' + '---|' * len(TIMES))
    base = shrink(images, base_size)
    coarse = torch.randn_like(base)
    for scale in SCALES:
        original, guess = shrink(images, base_size * scale), upsample(base, scale)
        fine = finer_noise(coarse, scale)
        rows = {}
        for t in TIMES:
            found = {}
            for name, net in (('one density', single), ('several densities', multi)):
                estimate = upsample(one_step(net, base, coarse, t, labels), scale)
                found['nothing', f'bicubic of the estimate at base size, {name}'] = estimate
            for start, picture in (('the original', original), ('bicubic', guess)):
                patches = base_size // single.patch_size
                found[start, "the paper's, one density"] = paper_step(single, picture, fine, t, labels, patches)
                found[start, 'finer field, one density'] = one_step(single, base, coarse, t, labels, picture, scale)
                found[start, 'finer field, several densities'] = one_step(
                    multi, base, coarse, t, labels, picture, scale
                )
            for key, estimate in found.items():
                rows.setdefault(key, []).append(psnr(estimate, original))
        for (start, method), values in rows.items():
            print(f'| {scale}x | {start} | {method} | ' + ' | '.join(f'{value:.1f}' for value in values) + ' |')
        print(f'| {scale}x | - | bicubic of the true base picture | ' + f'{psnr(guess, original):.1f} | ' * len(TIMES))


def print_looks(single, multi, sampler, images, base_size: int, num: int, seed: int) -> None:
    """Print, for whole sampled pictures: seams between patches, and steps inside patches against the originals'."""
    noise = draw_noise(image_generators(range(seed, seed + num)), (3, base_size, base_size))
    labels, null = torch.arange(num) % single.num_classes, torch.tensor([single.num_classes])
    image, field = sampler.sample(single, noise, labels, null, record_field=True)
    image_multi, field_multi = sampler.sample(multi, noise, labels, null, record_field=True)
    print('\n| size | method | seams | detail |\n|---|---|---|---|')
    for scale in (1, *SCALES):
        size, grid = (base_size * scale,) * 2, (base_size // single.patch_size,) * 2
        real, fine = border_steps(shrink(images, size[0]), grid)
        print(f'| {scale}x | the originals | {real / fine:.2f} | 1.00 |')
        ways = {'one density': image, 'several densities': image_multi}
        if scale > 1:
            ways = {
                'bicubic, one density': upsample(image, scale),
                'bicubic, several densities': upsample(image_multi, scale),
                "the paper's way, one density": paper_sample(single, sampler, noise, labels, null, scale),
                'field, corners, one density': field.decode(size, alignment='corners'),
                'field, centers, one density': field.decode(size, alignment='centers'),
                'field, centers, several densities': field_multi.decode(size, alignment='centers'),
                'field, hard borders, several densities': field_multi.decode(size, alignment='centers', blend=0),
            }
        for name, pictures in ways.items():
            across, inside = border_steps(pictures, grid)
            print(f'| {scale}x | {name} | {across / inside:.2f} | {inside / fine:.2f} |')


def print_seams(net, sampler, images, base_size: int, num: int, seed: int, scales=(1, *SCALES)) -> None:
    """Print the seams of one network's pictures by size: decoded from one run, and sampled at the fixed token grid."""
    noise = draw_noise(image_generators(range(seed, seed + num)), (3, base_size, base_size))
    labels, null = torch.arange(num) % net.num_classes, torch.tensor([net.num_classes])
    grid = (base_size // net.patch_size,) * 2
    _, field = sampler.sample(net, noise, labels, null, record_field=True)
    fine = {scale: finer_noise(noise, scale) for scale in scales}
    rows = {'the originals': [seam_ratio(shrink(images, base_size * scale), grid) for scale in scales]}
    for blend in BLENDS:
        decoded = (field.decode((base_size * scale,) * 2, blend=blend) for scale in scales)
        rows[f'decoded, blend={blend:g}'] = [seam_ratio(pictures, grid) for pictures in decoded]
    for blend in BLENDS:
        sampled = (fixed_tokens(net, sampler, fine[scale], labels, null, grid, blend) for scale in scales)
        rows[f'sampled at {grid[0]}x{grid[1]} tokens, blend={blend:g}'] = [seam_ratio(x, grid) for x in sampled]
    print(f'Steps across borders over steps inside, {num} pictures, {net.head.alignment}-aligned\n')
    print('| |' + ''.join(f' {scale}x |' for scale in scales) + '\n|---|' + '---|' * len(scales))
    for name, values in rows.items():
        print(f'| {name} |' + ''.join(f' {value:.2f} |' for value in values))

"""Numbers against real larger originals: one step on held-out pictures, and what whole pictures look like."""

import torch
import torch.nn.functional as F
from resolution_ways import edge_share, finer_noise, fixed_tokens, one_step, paper_sample, paper_step, psnr, upsample

from pixnerd_plugin.datasets import DigitsDataset, ImageFolder
from pixnerd_plugin.functional.blending import BLEND
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.functional.seams import seam_ratio

TIMES = (0.3, 0.6, 0.9)
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


def print_estimates(networks: dict, images, labels, base_size: int) -> None:
    """Print a table, by scale and method: PSNR of ``x_t + (1 - t) v`` to the originals, and share of their edges."""
    columns = [f'{what}, t = {t}' for what in ('PSNR', 'edges') for t in TIMES]
    print('| size | fine pixels start from | method | ' + ' | '.join(columns) + ' |')
    print('|---|---|---|' + '---|' * len(columns))
    base = shrink(images, base_size)
    coarse = torch.randn_like(base)
    for scale in SCALES:
        original, guess = shrink(images, base_size * scale), upsample(base, scale)
        fine = finer_noise(coarse, scale)
        rows = {}
        for t in TIMES:
            found = {}
            for name, net in networks.items():
                estimate = upsample(one_step(net, base, coarse, t, labels), scale)
                found['nothing', f'{name}: bicubic of the estimate at base size'] = estimate
            for start, picture in (('bicubic', guess), ('the original', original)):
                for name, net in networks.items():
                    patches = base_size // net.patch_size
                    found[start, f"{name}: the paper's way"] = paper_step(net, picture, fine, t, labels, patches)
                    found[start, f'{name}: the field'] = one_step(net, base, coarse, t, labels, picture, scale)
            found['-', 'bicubic of the true base picture'] = guess
            for key, estimate in found.items():
                rows.setdefault(key, []).append((psnr(estimate, original), edge_share(estimate, original)))
        for (start, method), values in rows.items():
            cells = [f'{decibels:.1f}' for decibels, _ in values] + [f'{share:.2f}' for _, share in values]
            print(f'| {scale}x | {start} | {method} | ' + ' | '.join(cells) + ' |', flush=True)


def print_looks(networks: dict, sampler, images, base_size: int, num: int, seed: int) -> None:
    """Print the seams between patches of whole sampled pictures, by method and size."""
    noise = draw_noise(image_generators(range(seed, seed + num)), (3, base_size, base_size))
    scales = (1, *SCALES)
    rows = {}
    for name, net in networks.items():
        labels, null = torch.arange(num) % net.num_classes, torch.tensor([net.num_classes])
        grid = (base_size // net.patch_size,) * 2
        rows['the originals'] = [shrink(images, base_size * scale) for scale in scales]
        image, field = sampler.sample(net, noise, labels, null, record_field=True)
        rows[f'{name}: bicubic'] = [image, *(upsample(image, scale) for scale in SCALES)]
        rows[f"{name}: the paper's way"] = [
            image,
            *(paper_sample(net, sampler, noise, labels, null, scale) for scale in SCALES),
        ]
        for how, blend in (('hard borders', 0.0), ('joined', BLEND)):
            rows[f'{name}: the field, {how}'] = [
                field.decode((base_size * scale,) * 2, alignment='centers', blend=blend) for scale in scales
            ]
    print(f'\nSteps across borders over steps inside, {num} pictures\n')
    print_ratios(rows, grid, scales)


def print_ratios(rows: dict, grid: tuple[int, int], scales) -> None:
    """Print the seam ratio of each row's pictures, a column for each scale."""
    print('| |' + ''.join(f' {scale}x |' for scale in scales) + '\n|---|' + '---|' * len(scales))
    for name, pictures in rows.items():
        print(f'| {name} |' + ''.join(f' {seam_ratio(each, grid):.2f} |' for each in pictures))


def print_seams(net, sampler, images, base_size: int, num: int, seed: int, scales=(1, *SCALES)) -> None:
    """Print the seams of one network's pictures by size: decoded from one run, and sampled at the fixed token grid."""
    noise = draw_noise(image_generators(range(seed, seed + num)), (3, base_size, base_size))
    labels, null = torch.arange(num) % net.num_classes, torch.tensor([net.num_classes])
    grid = (base_size // net.patch_size,) * 2
    _, field = sampler.sample(net, noise, labels, null, record_field=True)
    fine = {scale: finer_noise(noise, scale) for scale in scales}
    rows = {'the originals': [shrink(images, base_size * scale) for scale in scales]}
    for blend in BLENDS:
        rows[f'decoded, blend={blend:g}'] = [field.decode((base_size * scale,) * 2, blend=blend) for scale in scales]
    for blend in BLENDS:
        rows[f'sampled at {grid[0]}x{grid[1]} tokens, blend={blend:g}'] = [
            fixed_tokens(net, sampler, fine[scale], labels, null, grid, blend) for scale in scales
        ]
    print(f'Steps across borders over steps inside, {num} pictures, {net.head.alignment}-aligned\n')
    print_ratios(rows, grid, scales)

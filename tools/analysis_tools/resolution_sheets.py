"""Contact sheets: ways of drawing larger side by side, and more tokens against a finer field."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from resolution_ways import finer_noise, fixed_tokens, paper_sample, repeat, upsample

from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.images import to_uint8

SCALES = (1, 2, 4, 8)
GAP, TITLE = 4, 18


def draw_sheets(networks: dict, sampler, base_size: int, num: int, seed: int, out: Path) -> None:
    """Write ``sheet_N.png`` for each of ``num`` pictures: a row for each network and way, a column for each scale."""
    noise = draw_noise(image_generators(range(seed, seed + num)), (3, base_size, base_size))
    rows = {}
    for name, net in networks.items():
        labels, null = torch.arange(num) % net.num_classes, torch.tensor([net.num_classes])
        image, field = sampler.sample(net, noise, labels, null, record_field=True)
        fine = SCALES[1:]
        rows[f'{name}: bicubic'] = [image, *(upsample(image, scale) for scale in fine)]
        rows[f"{name}: the paper's way"] = [
            image,
            *(paper_sample(net, sampler, noise, labels, null, scale) for scale in fine),
        ]
        rows[f'{name}: the field, decoded'] = [
            image,
            *(field.decode((base_size * scale,) * 2, alignment='centers') for scale in fine),
        ]
    for index in range(num):
        pictures = [
            (
                f'{title}, 1x to {SCALES[-1]}x',
                [repeat(image[index : index + 1], SCALES[-1] // s) for s, image in zip(SCALES, row, strict=True)],
            )
            for title, row in rows.items()
        ]
        save_sheet(out / f'sheet_{index}.png', pictures)


def draw_seams(net, sampler, base_size: int, scale: int, num: int, seed: int, path: Path) -> None:
    """Write a sheet of ``num`` pictures at ``scale``: hard borders over joined ones, decoded, then sampled there."""
    noise = draw_noise(image_generators(range(seed, seed + num)), (3, base_size, base_size))
    labels, null = torch.arange(num) % net.num_classes, torch.tensor([net.num_classes])
    grid, size = (base_size // net.patch_size,) * 2, (base_size * scale,) * 2
    _, field = sampler.sample(net, noise, labels, null, record_field=True)
    fine = finer_noise(noise, scale)
    rows = []
    for blend in (0.0, 0.5):
        rows.append((f'{scale}x, decoded, blend={blend:g}', field.decode(size, blend=blend)))
    for blend in (0.0, 0.5):
        pictures = fixed_tokens(net, sampler, fine, labels, null, grid, blend)
        rows.append((f'{scale}x, sampled at {grid[0]}x{grid[1]} tokens, blend={blend:g}', pictures))
    save_sheet(path, [(title, list(pictures.split(1))) for title, pictures in rows])


def draw_native(
    net, sampler, base_size: int, sizes: list[tuple[int, int]], num: int, shown: int, seed: int, out: Path, score=None
) -> None:
    """Write ``native.png``: each size with more tokens, and with the trained grid and a finer field.

    ``score`` takes square pictures and their labels, and prints and returns what share is recognised.
    """
    labels, null = torch.arange(num) % net.num_classes, torch.tensor([net.num_classes])
    grid = (base_size // net.patch_size,) * 2
    rows = []
    print('| size | tokens | recognised |\n|---|---|---|')
    for height, width in [(base_size, base_size), *sizes]:
        noise = draw_noise(image_generators(range(seed, seed + num)), (3, height, width))
        tokens = (height // net.patch_size, width // net.patch_size)
        ways = {tokens: sampler.sample(net, noise, labels, null)}
        if tokens != grid:
            ways[grid] = sampler.sample(net, noise, labels, null, token_grid=grid)
        for (down, across), images in ways.items():
            share = f'{score(to_uint8(images), labels.numpy()):.1%}' if score and height == width else '-'
            print(f'| {height}x{width} | {down}x{across} | {share} |', flush=True)
            title = f'{height}x{width} pixels, {down}x{across} tokens'
            rows.append((title, [repeat(image[None], 2) for image in images[:shown]]))
    save_sheet(out / 'native.png', rows)


def save_sheet(path: Path, rows: list) -> None:
    """Write rows of a title and pictures ``(1, 3, H, W)``, with a palette, which keeps the file small."""
    pixels = [(title, [to_uint8(picture)[0] for picture in row]) for title, row in rows]
    width = max(sum(picture.shape[1] + GAP for picture in row) for _, row in pixels) - GAP
    height = sum(max(picture.shape[0] for picture in row) + TITLE for _, row in pixels)
    sheet = Image.new('RGB', (width, height), 'white')
    top = 0
    for title, row in pixels:
        ImageDraw.Draw(sheet).text((2, top + 2), title, 'black', ImageFont.load_default(12))
        left = 0
        for picture in row:
            sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (left, top + TITLE))
            left += picture.shape[1] + GAP
        top += max(picture.shape[0] for picture in row) + TITLE
    with atomic_path(path) as temporary:
        sheet.quantize(64).save(temporary, format='PNG', optimize=True)
    print(f'figure: {path}')

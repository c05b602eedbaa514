#!/usr/bin/env python
"""Render a saved field trajectory at any size: to a tiled TIFF, tile by tile and never held whole, or to a PNG."""

import argparse
import json
from pathlib import Path

import options

PNG_LIMIT = 4096**2
TIFF_SUFFIXES = ('.tif', '.tiff')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('field', help='field trajectory, .safetensors (tools/sample.py --save-field)')
    parser.add_argument('out', type=Path, help='picture to write: .tif of any size, or .png up to 4096x4096 pixels')
    parser.add_argument(
        '--size', type=options.size, metavar='HxW', help='size of the whole picture in pixels (as sampled)'
    )
    parser.add_argument(
        '--region', type=options.region, metavar='T,L,B,R', help='render only this region, in pixels of that size'
    )
    parser.add_argument('--picture', type=int, default=0, metavar='N', help='which of the pictures in the file (0)')
    parser.add_argument('--grain', type=float, default=0.0, help='share of noise of its own in every pixel, 0 to 1 (0)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the grain (0)')
    parser.add_argument(
        '--alignment', choices=['centers', 'corners'], help="where pixels sit in a patch (the field's own rule)"
    )
    parser.add_argument(
        '--blend',
        type=float,
        default=0.5,
        metavar='PIXELS',
        help='join patches over so many base pixels on both sides of a border, 0 (hard borders) to 1 (0.5)',
    )
    parser.add_argument('--tile', type=int, default=512, help='side of a tile in pixels, a multiple of 16 (512)')
    parser.add_argument('--device', help="'cuda', 'cpu', ...; by default a GPU if there is one")
    options.add_imports(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from pixnerd_plugin.images import to_uint8
    from pixnerd_plugin.memory import memory
    from pixnerd_plugin.sampling import FieldTrajectory

    if args.tile < 16 or args.tile % 16:
        raise ValueError(f'--tile {args.tile} must be a multiple of 16, as TIFF wants it')
    options.import_parts(args, args.field)
    field = FieldTrajectory.load(args.field).picture(args.picture)
    field = field.to(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    size = args.size or field.size
    region = args.region or (0, 0, *size)
    height, width = region[2] - region[0], region[3] - region[1]
    is_tiff = check_out(args.out, height, width)

    def tiles():
        with tqdm(total=height * width, unit='px', unit_scale=True, disable=None) as bar:
            options = dict(grain=args.grain, seed=args.seed, alignment=args.alignment, blend=args.blend)
            for (top, left, bottom, right), pixels in field.tiles(size, args.tile, region, **options):
                yield (top - region[0], left - region[1]), to_uint8(pixels)[0]
                bar.update((bottom - top) * (right - left))

    parameters = json.dumps(
        dict(field=Path(args.field).name, size=size, region=region, grain=args.grain, blend=args.blend)
    )
    if is_tiff:
        write_tiff(args.out, tiles(), height, width, args.tile, parameters)
    else:
        write_png(args.out, tiles(), height, width, parameters)
    peak = memory('VmHWM')
    print(f'{height}x{width} pixels in {args.out}' + (f'; memory at its peak: {peak[0]:.0f} MiB' if peak else ''))


def check_out(path: Path, height: int, width: int) -> bool:
    """Whether ``path`` asks for a TIFF; refuse what cannot be written before anything is rendered."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        return True
    if path.suffix.lower() != '.png':
        raise ValueError(f'{path}: the format is chosen by the ending, one of .png, {", ".join(TIFF_SUFFIXES)}')
    if height * width > PNG_LIMIT:
        raise ValueError(
            f'{path}: a PNG is held in memory whole, and {height}x{width} is more than {PNG_LIMIT} pixels; '
            f'write a tiled TIFF, {path.with_suffix(".tif")}'
        )
    return False


def write_tiff(path: Path, tiles, height: int, width: int, tile: int, parameters: str) -> None:
    """Write ``tiles``, ``((top, left), uint8 pixels)`` row by row, as they come."""
    try:
        import tifffile
    except ImportError:
        raise ValueError(f'{path}: writing TIFF needs tifffile; pip install tifffile') from None
    from pixnerd_plugin.formats.atomic import atomic_path

    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            (pixels for _, pixels in tiles),
            shape=(height, width, 3),
            dtype='uint8',
            tile=(tile, tile),
            photometric='rgb',
            compression='zlib',
            metadata=None,
            description=parameters,
        )


def write_png(path: Path, tiles, height: int, width: int, parameters: str) -> None:
    import numpy as np

    from pixnerd_plugin.images import save_png

    picture = np.empty((height, width, 3), np.uint8)
    for (top, left), pixels in tiles:
        picture[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    save_png(path, picture, dict(pixnerd=parameters))


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

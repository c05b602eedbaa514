#!/usr/bin/env python
"""Compare ways of drawing larger than trained: the paper's, a finer field, several densities, more tokens.

prepare: photographs to training and held-out squares. compare: checkpoints, such as trained at one and at several
densities, against real larger originals. seams: steps at patch borders, hard and joined. sheets: any checkpoints, side
by side from 1x to 8x. native: more tokens against the trained grid and a finer field. docs/resolution.md has the
commands.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    prepare = commands.add_parser('prepare', help='cut centre squares; every tenth picture is held out')
    prepare.add_argument('folder', help='photographs, in any sub-folders')
    prepare.add_argument('out', type=Path, help='gets train/photo and test/photo')
    prepare.add_argument('--side', type=int, default=256, help='side of the squares in pixels (256)')
    prepare.set_defaults(run=run_prepare)

    compare = commands.add_parser('compare', help='measure against originals')
    compare.add_argument('--data', default='digits', help="'digits', or a folder of held-out photographs (digits)")
    compare.add_argument('--num', type=int, default=48, help='held-out pictures to measure on (48)')
    compare.add_argument('--samples', type=int, default=16, help='pictures to sample for seams (16)')
    compare.set_defaults(run=run_compare)

    seams = commands.add_parser('seams', help='measure and draw seams between patches, hard and joined')
    seams.add_argument('checkpoint')
    seams.add_argument('--data', default='digits', help="originals: 'digits', or a folder of photographs (digits)")
    seams.add_argument('--num', type=int, default=48, help='originals to compare with (48)')
    seams.add_argument('--samples', type=int, default=16, help='pictures to sample (16)')
    seams.add_argument('--shown', type=int, default=4, help='of which are drawn (4)')
    seams.add_argument('--scale', type=int, default=8, help='at this multiple of the size (8)')
    seams.add_argument('--scales', type=int, nargs='+', default=[1, 2, 4, 8], help='multiples to measure (1 2 4 8)')
    seams.add_argument('--alignment', choices=['centers', 'corners'], help="read with this rule (the checkpoint's own)")
    seams.set_defaults(run=run_seams)

    sheets = commands.add_parser('sheets', help="draw contact sheets: bicubic, the paper's way and the field")
    sheets.add_argument('--num', type=int, default=2, help='pictures, one sheet each (2)')
    sheets.set_defaults(run=run_sheets)

    native = commands.add_parser('native', help='more tokens against a finer field')
    native.add_argument('checkpoint')
    sizes = [(40, 40), (48, 48), (64, 64), (32, 64)]
    native.add_argument('--sizes', type=options.size, nargs='+', default=sizes, metavar='HxW')
    native.add_argument('--num', type=int, default=200, help='pictures to sample of each (200)')
    native.add_argument('--shown', type=int, default=10, help='of which are drawn (10)')
    native.add_argument('--digits', action='store_true', help='score how many digits are recognised')
    native.set_defaults(run=run_native)
    for command in (compare, sheets):
        command.add_argument('checkpoints', nargs='+', help='all of one size')
        command.add_argument('--names', nargs='+', help='what to call them (one density, several densities)')
    for command in (compare, seams, sheets, native):
        command.add_argument('--seed', type=int, default=0)
    for command in (seams, sheets, native):
        command.add_argument('--out', type=Path, default=Path('work_dirs/resolution'), help='folder for the figures')
    return parser.parse_args()


def run_prepare(args: argparse.Namespace) -> None:
    prepare(args.folder, args.out, args.side)


def prepare(folder: str, out: Path, side: int) -> None:
    from PIL import Image, ImageOps
    from tqdm import tqdm

    from pixnerd_plugin.datasets.image_folder import list_images

    paths = list_images(folder)
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


def load(path: str):
    """A class-conditional network in float32 on the CPU, its sampler and the side of its pictures."""
    from pixnerd_plugin import load_pipeline

    pipe = load_pipeline(path, device='cpu', dtype='float32')
    if pipe.is_text:
        raise ValueError(f'{path} draws prompts; this study takes a class-conditional network')
    return pipe.net, pipe.sampler, pipe.size[0]


def load_all(args: argparse.Namespace):
    """The networks by name, and the sampler and size of the first."""
    names = args.names or ['one density', 'several densities'][-len(args.checkpoints) :]
    if len(names) != len(args.checkpoints):
        raise ValueError(f'{len(args.checkpoints)} checkpoints and {len(names)} names; give one of --names for each')
    loaded = [load(path) for path in args.checkpoints]
    (_, sampler, size), *_ = loaded
    return {name: net for name, (net, *_) in zip(names, loaded, strict=True)}, sampler, size


def run_compare(args: argparse.Namespace) -> None:
    import torch
    from resolution_numbers import SCALES, load_originals, print_estimates, print_looks

    networks, sampler, size = load_all(args)
    images, labels = load_originals(args.data, size * max(SCALES), args.num)
    torch.manual_seed(args.seed)
    print(f'One step on {len(images)} held-out pictures, {size} pixels wide: PSNR in dB, share of edges\n')
    with torch.no_grad():
        print_estimates(networks, images, labels, size)
        print_looks(networks, sampler, images, size, args.samples, args.seed)


def run_seams(args: argparse.Namespace) -> None:
    import torch
    from resolution_numbers import load_originals, print_seams
    from resolution_sheets import draw_seams
    from resolution_ways import aligned

    net, sampler, size = load(args.checkpoint)
    images, _ = load_originals(args.data, size * max(args.scales), args.num)
    torch.manual_seed(args.seed)
    with aligned(net, args.alignment or net.head.alignment):
        print_seams(net, sampler, images, size, args.samples, args.seed, args.scales)
        draw_seams(net, sampler, size, args.scale, args.shown, args.seed, args.out / 'seams.png')


def run_sheets(args: argparse.Namespace) -> None:
    import torch
    from resolution_sheets import draw_sheets

    networks, sampler, size = load_all(args)
    torch.manual_seed(args.seed)
    draw_sheets(networks, sampler, size, args.num, args.seed, args.out)


def run_native(args: argparse.Namespace) -> None:
    from resolution_sheets import draw_native

    net, sampler, size = load(args.checkpoint)
    score = None
    if args.digits:
        from demo_digits import recognise as score
    draw_native(net, sampler, size, args.sizes, args.num, args.shown, args.seed, args.out, score)


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        arguments.run(arguments)

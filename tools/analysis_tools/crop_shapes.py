#!/usr/bin/env python
"""Cut CIFAR-10 to pictures of three shapes, captioned by class, to train and measure on several shapes.

FOLDER/train/CLASS/* becomes OUT/train/*.png, wide (8x32), tall (32x8) and square (16x16) in turns, with a .txt beside
each; FOLDER/test/CLASS/* becomes OUT/test/SHAPE/*.png, every picture in every shape, to measure against.
"""

import argparse
from pathlib import Path

SHAPES = dict(wide=(8, 32), tall=(32, 8), square=(16, 16))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='CIFAR-10 as pictures: train/CLASS/* and test/CLASS/*')
    parser.add_argument('out', type=Path, help='folder to write train/ and test/ into')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    pictures = {split: sorted(args.folder.glob(f'{split}/*/*')) for split in ('train', 'test')}
    for split, paths in pictures.items():
        if not paths:
            raise FileNotFoundError(f'no pictures in {args.folder}/{split}/CLASS; unpack CIFAR-10 as pictures there')
    (args.out / 'train').mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(tqdm(pictures['train'], unit='picture', disable=None)):
        name = args.out / 'train' / f'{path.parent.name}_{path.stem}'
        crop(path, list(SHAPES.values())[index % 3]).save(f'{name}.png')
        Path(f'{name}.txt').write_text(path.parent.name)
    for shape, size in SHAPES.items():
        (args.out / 'test' / shape).mkdir(parents=True, exist_ok=True)
        for path in pictures['test']:
            crop(path, size).save(args.out / 'test' / shape / f'{path.parent.name}_{path.stem}.png')


def crop(path: Path, size: tuple[int, int]):
    """The centre of a picture, at its own scale."""
    from pixnerd_plugin.datasets.decode import decode_image

    picture = decode_image(path)
    height, width = size
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

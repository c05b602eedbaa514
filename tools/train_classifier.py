#!/usr/bin/env python
"""Train a small classifier of a data set's own classes, to score samples of a model trained on the same pictures.

It reads FOLDER/train and FOLDER/test, one sub-folder a class, or scikit-learn's digits.
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help="folder with train/CLASS/* and test/CLASS/*, or 'digits'")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/classifier.safetensors'), help='file to write')
    parser.add_argument('--steps', type=int, default=2000, help='training steps of 64 pictures (2000)')
    parser.add_argument('--flip', action='store_true', help='mirror half of the pictures; right for photographs')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from pixnerd_plugin.evaluation.classifier import accuracy, save_classifier, train_classifier
    from pixnerd_plugin.evaluation.pictures import load_all, open_images

    if args.steps < 1:
        raise ValueError(f'--steps must be at least 1, got {args.steps}')
    parts = [f'digits:{split}' if args.data == 'digits' else f'{args.data}/{split}' for split in ('train', 'test')]
    train, test = (open_images(part) for part in parts)
    images, labels = load_all(train)
    test_images, test_labels = load_all(test)
    names = class_names(args.data)
    with tqdm(total=args.steps, desc='training', unit='step', disable=None) as bar:

        def show(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f'{loss:.2f}', refresh=False)

        net = train_classifier(images, labels, len(names), args.steps, flip=args.flip, seed=args.seed, callback=show)
    share = accuracy(net, test_images, test_labels)
    save_classifier(net, args.out, class_names=names, size=train.size, accuracy=share)
    print(f'{args.out}: right on {share:.1%} of {len(test_images)} pictures it was not trained on'.replace('%', ' %'))


def class_names(data: str) -> list[str]:
    if data == 'digits':
        return list('0123456789')
    return sorted(path.name for path in Path(data, 'train').iterdir() if path.is_dir())


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

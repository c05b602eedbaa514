"""The teacher of `make demo`: a classifier whose features its tokens are aligned with (REPA, paper Sec. 4)."""

from pathlib import Path

PICTURES, TEST_PICTURES, BATCH_SIZE = 15_000, 1500, 32


def groups() -> list[tuple[str, ...]]:
    """The names that apply to a picture, one of each group.

    With a class for each combination instead, the network follows fewer prompts that training never shows.
    """
    from pixnerd_plugin.datasets.digit_scenes import BACKGROUNDS, COLOURS, DIGITS

    return [DIGITS, tuple(COLOURS), tuple(BACKGROUNDS)]


def class_names() -> list[str]:
    """The teacher's classes: the names of all groups."""
    return [name for group in groups() for name in group]


def is_ready(path: Path) -> bool:
    """Whether a teacher is there; one that cannot be read is named."""
    import torch

    from pixnerd_plugin.evaluation.classifier import ClassifierTeacher, read_description

    if not path.exists():
        return False
    try:
        ClassifierTeacher(path)(torch.zeros(1, 3, 32, 32))
    except ValueError as error:
        print(f'{error}; a new one takes its place')
        return False
    return read_description(path)['class_names'] == class_names()


def write_teacher(path: Path, dataset: dict, steps: int) -> None:
    """Train a teacher on the pictures of a data set whose digits are all equal, and write it."""
    import torch
    from tqdm import tqdm

    from pixnerd_plugin.evaluation.classifier import save_classifier, train_classifier

    images, labels = labelled(dict(dataset, num=PICTURES, split='train'))
    test_images, test_labels = labelled(dict(dataset, num=TEST_PICTURES, split='test'))
    names = class_names()
    with tqdm(total=steps, desc='teacher', unit='step', disable=None) as bar:
        net = train_classifier(images, labels, len(names), steps, BATCH_SIZE, callback=lambda *_: bar.update())
    sizes = [len(group) for group in groups()]
    with torch.no_grad():
        logits = net(test_images.float() / 127.5 - 1)[2]
    named = [
        part.argmax(1) == truth.argmax(1)
        for part, truth in zip(logits.split(sizes, 1), test_labels.split(sizes, 1), strict=True)
    ]
    share = torch.stack(named).all(0).float().mean().item()
    save_classifier(net, path, class_names=names, size=tuple(images.shape[2:]), accuracy=share)
    right = f'{100 * share:.1f} %'
    print(f'A teacher of digits, colours and backgrounds, all three right in {right} of pictures of new scans: {path}')


def labelled(settings: dict):
    """The square pictures whose digits are all equal, uint8 (N, 3, 32, 32), and the shares of their names (N, 20)."""
    import numpy as np
    import torch

    from pixnerd_plugin.datasets.digit_scenes import DIGITS
    from pixnerd_plugin.registry import DATASETS, build

    names = class_names()
    dataset = build(DATASETS, dict(settings, scale=1, pipeline=[]))
    pictures, labels = [], []
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        kinds = {(digit.value, digit.colour) for digit in scene.digits}
        if scene.shape[0] == scene.shape[1] and len(kinds) == 1:
            ((value, colour),) = kinds
            shown = {DIGITS[value], colour, scene.background}
            pictures.append(dataset.get_data_info(index)['img'])
            labels.append([(name in shown) / len(shown) for name in names])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

"""What studies of small networks share: their folder and its settings, their runs, their classifier, their figures."""

import json
import re
from pathlib import Path


def claim(out: Path, settings: dict) -> None:
    """Write the settings of a study into its folder, and refuse one with results of any other: means are over all."""
    from pixnerd_plugin.evaluation.study import save_result

    path = out / 'settings.json'
    there = read(path)
    if not there and (out / 'floor.json').is_file():
        raise ValueError(f'{out} holds results of a sweep whose settings are not known; choose another --out')
    for name, value in settings.items():
        if there.get(name, value) != value:
            raise ValueError(
                f'{out} holds results of {name} {there[name]}, and this sweep has {value}; choose another --out'
            )
    save_result(path, {**there, **settings})


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def train_classifier(config, path: Path) -> None:
    from pixnerd_plugin.evaluation.classifier import accuracy, save_classifier, train_classifier
    from pixnerd_plugin.evaluation.generate import image_size_of
    from pixnerd_plugin.evaluation.pictures import load_all, open_images
    from pixnerd_plugin.evaluation.study import split_of

    size = image_size_of(config)
    (images, labels), test = (load_all(open_images(split_of(config, part), size)) for part in ('train', 'test'))
    names = config.model.conditioner.class_names
    print(f'Training a classifier on {len(images)} pictures, once.')
    net = train_classifier(images, labels, len(names), steps=300)
    share = accuracy(net, *test)
    save_classifier(net, path, class_names=names, size=size, accuracy=share)
    print(f'{path}: right on {share:.1%} of {len(test[0])} pictures it was not trained on'.replace('%', ' %'))


def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / re.sub(r'\W+', '_', name) / f'seed_{seed}'


def run_options(config, classifier: Path, iters: int | None) -> dict:
    """Entries that every run of a sweep has: its length, and the classifier as teacher where there is one."""
    entries: dict = {}
    if config.model.loss.teacher is not None:
        entries['model.loss.teacher.weights'] = str(classifier)
    return entries | (length_options(config, iters) if iters else {})


def length_options(config, iters: int) -> dict:
    """Entries of a run of ``iters`` steps."""
    warm_up = min(config.param_scheduler[0].end, iters // 2)
    entries = {'param_scheduler.0.end': warm_up, 'param_scheduler.1.begin': warm_up}
    entries |= {'train_cfg.max_iters': iters, 'param_scheduler.1.end': iters}
    entries |= {'default_hooks.checkpoint.interval': iters, 'custom_hooks.0.interval': iters}
    # A short run logs often enough for a curve.
    entries['default_hooks.logger.interval'] = min(config.default_hooks.logger.interval, max(1, iters // 10))
    return entries


def new_figure(rows: int, columns: int):
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.2 * rows), layout='constrained', squeeze=False
    )
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    return pyplot, figure, axes


def save_figure(path: Path, pyplot, figure) -> None:
    from pixnerd_plugin.formats.atomic import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    print(f'figure: {path}')

"""Training on one's own classes: as many as the data has, under their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixnerd_plugin.datasets.image_folder import class_folders
from pixnerd_plugin.registry import DATASETS


def use_own_classes(config: Any) -> None:
    """Do what ``own_classes=True`` in a config asks for: give the model the classes of the training data.

    Raises:
        FileNotFoundError: if the data is a folder that does not exist.
        ValueError: if the data has no classes, or the model trains adapters only.
    """
    if not config.get('own_classes'):
        return
    if config.model.get('lora'):
        raise ValueError('own_classes needs a new table of classes, and model.lora trains adapters only; leave one out')
    dataset = config.train_dataloader.dataset
    metainfo = getattr(DATASETS.get(dataset.type), 'METAINFO', {}) | (dataset.get('metainfo') or {})
    names = metainfo.get('classes')
    if names is None and dataset.type == 'ImageFolder':
        names = class_folders(dataset.data_root)
    if not names:
        raise ValueError(f'own_classes: {dataset.type} has no classes; use an ImageFolder with a sub-folder per class')
    set_classes(config, len(names), names)


def set_classes(config: Any, number: int, names: Sequence[str] | None) -> None:
    """Set the number and the names of the classes in a config."""
    config.model.backbone.num_classes = config.model.conditioner.num_classes = number
    config.model.conditioner.class_names = None if names is None else list(names)

"""Class labels as the condition of class-to-image models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.formats.schema import integer, shown, text
from pixnerd_plugin.formats.text_file import read_text
from pixnerd_plugin.registry import MODELS

from .base import Conditioner

MAX_CLASSES = 10**6

_NAME = text(1000)


@MODELS.register_module()
class LabelConditioner(Conditioner):
    """Class numbers or names to class ids; the null condition is ``num_classes``.

    Args:
        num_classes: number of classes, not counting the null class.
        class_names: one name per class, in order of the class number, or a text file with one per line. A name may
            consist of several separated by commas (``'tench, Tinca tinca'``), of which any is accepted, in any case.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``num_classes`` is below 1, or the names are not one text per class.
    """

    def __init__(self, num_classes: int, class_names: Sequence[str] | str | Path | None = None):
        integer(1, MAX_CLASSES).check('num_classes', num_classes)
        where = ''
        if isinstance(class_names, (str, Path)):
            where = f'{class_names}: '
            class_names = read_text(Path(class_names).expanduser(), 'file of class names').splitlines()
        if class_names is not None:
            _check_names(where, class_names, num_classes)
        self.num_classes = num_classes
        self.class_names = None if class_names is None else list(class_names)
        self._ids: dict[str, set[int]] = defaultdict(set)
        for class_id, name in enumerate(self.class_names or []):
            for synonym in filter(None, map(_fold, (name, *name.split(',')))):
                self._ids[synonym].add(class_id)

    def __call__(self, inputs: Sequence[int | str]) -> Tensor:
        """Convert class numbers (``207``, ``'207'``) or names to ids, shape (B,), long.

        Raises:
            ValueError: if a number is out of range, or a name is unknown or shared by several classes.
        """
        return torch.tensor([self._parse(label) for label in inputs], dtype=torch.long, device=self.device)

    def null(self, batch_size: int) -> Tensor:
        """The null class, shape (B,), long."""
        return torch.full((batch_size,), self.num_classes, dtype=torch.long, device=self.device)

    def from_batch(self, data_samples: Mapping[str, Any]) -> Tensor:
        """Convert ``data_samples['label']``, shape (B,), to class ids of that shape, long."""
        if 'label' not in data_samples:
            raise ValueError(f'the batch has no label, only {sorted(data_samples)}: the pipeline must keep it')
        labels = torch.as_tensor(data_samples['label'])
        # Labels come from the loader on the CPU; on an accelerator this check would stall every step.
        if labels.device.type == 'cpu' and len(labels):
            for extreme in (int(labels.min()), int(labels.max())):
                self._check_range(extreme)
        return labels.to(self.device, torch.long, non_blocking=True)

    def _parse(self, label: int | str) -> int:
        if isinstance(label, str):
            ids = self._ids.get(_fold(label), set())
            if len(ids) > 1:
                raise ValueError(f'class name {label!r} is shared by classes {sorted(ids)}: give the number')
            if ids:
                return next(iter(ids))
            try:
                label = int(label)
            except ValueError:
                known = f'one of {self.num_classes} names such as {self.class_names[0]!r}' if self.class_names else ''
                expected = f'{known} or a number' if known else 'a number, because this model has no class names'
                raise ValueError(f'class {label!r} is unknown: give {expected}') from None
        return self._check_range(int(label))

    def _check_range(self, class_id: int) -> int:
        if not 0 <= class_id < self.num_classes:
            raise ValueError(f'class {class_id} is out of range: this model has classes 0 to {self.num_classes - 1}')
        return class_id


def _fold(name: str) -> str:
    return ' '.join(name.replace('_', ' ').casefold().split())


def _check_names(where: str, names: Any, num_classes: int) -> None:
    if isinstance(names, (Mapping, bytes)) or not isinstance(names, Sequence):
        raise ValueError(f'class_names={shown(names)} must be a list of texts, or the path of a file with one a line')
    if len(names) != num_classes:
        raise ValueError(f'{where}{len(names)} class names were given for {num_classes} classes')
    for number, name in enumerate(names):
        _NAME.check(f'{where}name of class {number}', name)

"""Networks from files: the published Lightning checkpoints, mmengine's of ours, and safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors, require_finite
from pixnerd_plugin.formats.parts import UnknownPart, build_part
from pixnerd_plugin.formats.schema import naming
from pixnerd_plugin.models.layers import operations

from .architecture import find_architecture
from .contents import Contents, open_contents
from .layouts.lora import shapes_of
from .layouts.published import describe_difference
from .metadata import METADATA_KEY
from .own_parts import modules_of

_CLASSES = 'label_embed.weight'

__all__ = ['METADATA_KEY', 'Checkpoint', 'load_backbone', 'load_into', 'read_checkpoint']


@dataclass(frozen=True)
class Checkpoint:
    """One network of a file.

    Args:
        path: the file.
        lazy: its tensors under our names, not read yet.
        architecture: the registry dict of the network that they fit.
        metadata: what else the file says; see :mod:`~.metadata`.
    """

    path: Path
    lazy: Tensors
    architecture: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, read anew; ValueError if one is not finite."""
        return {name: self._read(name, tensor) for name, tensor in self.lazy.items()}

    def build(self) -> nn.Module:
        """The network, its tensors on the meta device.

        Raises:
            ValueError: if the tensors are not exactly those of the architecture.
        """
        try:
            with torch.device('meta'):
                own = {name: value for name, value in self.architecture.items() if name != 'head'}
                shared = {name: own[name] for name in ('dim', 'patch_size', 'in_channels')}
                # Built here: a registry would look for its class, and import what promises to have it.
                head = build_part(self.architecture['head'], 'head', **shared, operations=operations)
                net = build_part(own, 'backbone', head=head)
        # Each argument may be one a network can have, and all together none.
        except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError) as error:
            reason = ' '.join(str(error).split())[:300]
            raise ValueError(f'{self.path}: a network of its architecture cannot be built: {reason}') from None
        if problem := difference(net, self.lazy):
            raise ValueError(f'{self.path}: the tensors do not fit the architecture: {problem}')
        return net

    def load(self) -> nn.Module:
        """The network as a plain trainable module on the CPU, in the file's dtype; errors as in :meth:`build`."""
        # Built without memory: the file's tensors become the parameters.
        net = self.build()
        net.load_state_dict(self.tensors, assign=True)
        return net

    def _read(self, name: str, tensor: LazyTensor) -> Tensor:
        if not tensor.dtype.is_floating_point:
            raise ValueError(f'{self.path}: {name} is of {tensor.dtype}, and weights are floating point')
        value = require_finite(f'{self.path}: {name}', tensor.read())
        # float8 is a way to store weights; no layer computes or trains with it.
        return value.bfloat16() if value.dtype.itemsize == 1 else value


def load_backbone(path: str | Path, weights: str = 'ema') -> nn.Module:
    """Load a network from a file as a plain trainable module on the CPU, in the file's dtype (float8: bfloat16).

    Args:
        path: published Lightning ``.ckpt``, mmengine ``.pth`` of ours, ``.safetensors`` in any known key layout, or a
            diffusers folder.
        weights: ``'ema'`` (to sample from) or ``'raw'`` (to train on), where the file tells which it has.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds no such weights, or does not fit its architecture exactly; one line.
    """
    return read_checkpoint(path, weights).load()


def load_into(
    net: nn.Module, path: str | Path, weights: str = 'ema', new: str | None = None, new_classes: bool = False
) -> None:
    """Load a file's network into one that is built already. Arguments and errors as in :func:`load_backbone`.

    Args:
        new: layers of ``net`` under this name keep their weights if the file has none of them.
        new_classes: the classes of ``net`` are others than the file's. Of the file's table only the row of no class is
            taken. The other rows start there too, plus their values before: a new class first means any picture.
    """
    tensors = read_checkpoint(path, weights).tensors
    if new is not None and not any(name.startswith(new) for name in tensors):
        tensors |= {name: tensor for name, tensor in net.state_dict().items() if name.startswith(new)}
    try:
        if new_classes:
            own = net.state_dict().get(_CLASSES)
            if own is None or _CLASSES not in tensors:
                raise ValueError(f'{path if own is not None else "the backbone of the config"} has no classes')
            null = tensors[_CLASSES][-1:].to(own)
            tensors[_CLASSES] = torch.cat([own[:-1] + null, null])
        net.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f'{path} does not fit the backbone of the config: {reason}') from None


def read_checkpoint(path: str | Path, weights: str = 'ema') -> Checkpoint:
    """Find one network in a file, reading no tensor yet. Arguments and errors as in :func:`load_backbone`."""
    contents = open_contents(path)
    return checkpoint_of(contents, contents.label(weights))


def checkpoint_of(contents: Contents, label: str) -> Checkpoint:
    """The network of a file that has this label, adapters of its training merged."""
    tensors = contents.merged(label)
    with naming(contents.path), _naming_modules(contents.path):
        architecture = find_architecture(shapes_of(tensors), contents.metadata.get('architecture'))
        names, classes = contents.metadata.get('class_names'), architecture.get('num_classes')
        if names is not None and classes is not None and len(names) != classes:
            raise ValueError(f'its metadata names {len(names)} classes, and the network has {classes}')
    return Checkpoint(contents.path, tensors, architecture, contents.metadata)


@contextmanager
def _naming_modules(path: Path) -> Iterator[None]:
    """Say what to import for a part that is not registered."""
    try:
        yield
    except UnknownPart as error:
        modules = ' '.join(modules_of(path))
        said = ', as the config in the file does; import it only if it is yours' if modules else ''
        raise ValueError(f'{error} (--import {modules or "MODULE"} on the command line{said})') from None


def difference(net: nn.Module, tensors: Tensors) -> str:
    """One line on how ``tensors`` differ from the state of ``net`` in names and shapes, or an empty string."""
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    if problem := describe_difference(set(shapes), set(tensors)):
        return problem
    wrong = [name for name, tensor in tensors.items() if tensor.shape != shapes[name]]
    return f'{wrong[0]} is {tensors[wrong[0]].shape}, and {shapes[wrong[0]]} is due' if wrong else ''

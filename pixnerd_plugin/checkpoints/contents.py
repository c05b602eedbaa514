"""What networks a checkpoint file holds, whatever program wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors
from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.safetensors_file import open_safetensors
from pixnerd_plugin.formats.safetensors_index import SUFFIX as INDEX
from pixnerd_plugin.formats.safetensors_index import open_index
from pixnerd_plugin.formats.schema import naming
from pixnerd_plugin.formats.torch_file import open_torch

from .layouts.containers import Container, State, clean, unpack
from .layouts.lora import Lora, merge_lora, split_peft
from .layouts.names import LABELLED, METADATA_TENSOR, PROJECTOR, PUBLISHED_PROJECTOR, UNLABELLED, has_network
from .layouts.published import is_published, published_to_ours
from .layouts.scaled import unscale
from .metadata import MAX_TEXT, METADATA_KEY, check_metadata, parse_metadata, parse_metadata_tensor


class Contents(NamedTuple):
    """What a file holds.

    Args:
        path: the file.
        kind: the program or layout it is of, in words.
        networks: tensors under our names, by what they are: ``'ema'``, ``'raw'``, or ``'unlabelled'`` where the file
            does not tell.
        projector: tensors of the loss's projector, under the names of our ``loss.projector``.
        metadata: see :mod:`~.metadata`.
        ignored: names of the file's other tensors, and of its other entries.
        steps: training steps, where the file tells.
        loras: adapters that a training with LoRA added to the networks, by label; the networks are without them.
        took: what else was seen to on the way to the network, in words, such as a wrapper's part of the names.
    """

    path: Path
    kind: str
    networks: dict[str, Tensors]
    projector: Tensors
    metadata: dict[str, Any]
    ignored: list[str]
    steps: int | None
    loras: dict[str, Lora]
    took: list[str]

    def label(self, weights: str) -> str:
        """The label of the network that ``weights`` asks for.

        Raises:
            ValueError: if the file does not have it.
        """
        if weights not in LABELLED:
            raise ValueError(f"weights={weights!r} is not known; use 'ema' or 'raw'")
        for label in (weights, 'unlabelled'):
            if label in self.networks:
                return label
        others = ' and '.join(self.networks)
        raise ValueError(f'{self.path}: the file has no {weights} weights; it has {others} weights')

    def merged(self, label: str) -> Tensors:
        """The tensors of a network, the adapters of its training added."""
        return merge_lora(self.networks[label], self.loras.get(label, {}))


def open_contents(path: str | Path) -> Contents:
    """Find the networks of a file (or of a diffusers folder), reading no tensor.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds no PixNerd network; one line.
    """
    path = weights_file(Path(path))
    if path.name.endswith(('.safetensors', INDEX)):
        tensors, texts = open_index(path) if path.name.endswith(INDEX) else open_safetensors(path)
        with naming(path):
            metadata = parse_metadata(texts[METADATA_KEY]) if METADATA_KEY in texts else {}
            return _contents(path, Container({'unlabelled': clean(tensors)}, None, '', []), metadata, None)
    content = open_torch(path)
    with naming(path):
        if type(content) is not dict:
            raise ValueError(f'a checkpoint holds a dict with state_dict, this holds a {type(content).__name__}')
        meta: dict = content['meta'] if type(content.get('meta')) is dict else {}
        stored = meta.get(METADATA_KEY) or content.get(METADATA_KEY)
        others = ('meta', METADATA_KEY)
        container = unpack({name: value for name, value in content.items() if name not in others})
        contents = _contents(path, container, {} if stored is None else check_metadata(stored), _steps(content, meta))
        _refuse_shared_memory(contents, path.stat().st_size)
        return contents


def weights_file(path: Path) -> Path:
    """The file of weights in a folder of diffusers or accelerate; a file is itself.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if it is no plain file.
    """
    if path.is_dir():
        for name in ('transformer/diffusion_pytorch_model', 'diffusion_pytorch_model', 'model'):
            for suffix in ('.safetensors', INDEX):
                if (path / f'{name}{suffix}').is_file():
                    return path / f'{name}{suffix}'
        raise FileNotFoundError(f'{path} is a folder without transformer/diffusion_pytorch_model.safetensors')
    require_file(path, 'checkpoint file')
    return path


def _steps(content: dict[Any, Any], meta: dict[Any, Any]) -> int | None:
    found = (content.get('global_step'), meta.get('iter'), content.get('step'), content.get('global_steps'))
    return next((steps for steps in found if type(steps) is int and 0 <= steps < 2**53), None)


def _refuse_shared_memory(contents: Contents, size: int) -> None:
    """Tensors of a network are apart. Those of a file may share memory, and then take far more when they are read."""
    for label, tensors in contents.networks.items():
        adapters = [part for adapter in contents.loras.get(label, {}).values() for part in adapter.parts.values()]
        needed = sum(tensor.nbytes for tensor in (*tensors.values(), *contents.projector.values(), *adapters))
        if needed > size:
            raise ValueError(f'its tensors take {needed} bytes, and the file has {size}: they share memory')


def _contents(path: Path, container: Container, metadata: dict[str, Any], steps: int | None) -> Contents:
    kind, networks, used = _networks(container)
    took = [container.took] if container.took else []
    wrappers = sorted({name for state in container.states.values() for name in state.wrappers})
    took += [f'names without {" and ".join(repr(name + ".") for name in wrappers)}'] if wrappers else []
    for found in networks.values():
        if METADATA_TENSOR in found:
            stored = _read_metadata(found.pop(METADATA_TENSOR))
            metadata = metadata or stored
    if (label := metadata.get('weights')) in ('ema', 'raw'):
        if 'unlabelled' in networks:
            networks = {label: networks['unlabelled']}
        # Written under both names, for programs that want both.
        networks = {label: networks[label]} if label in networks else networks
    projector, ignored = {}, []
    for state in container.states.values():
        for name, tensor in state.tensors.items():
            prefix = next((prefix for prefix in (PUBLISHED_PROJECTOR, PROJECTOR) if name.startswith(prefix)), None)
            if prefix and name not in used:
                projector[name.removeprefix(prefix)] = tensor
            elif name not in used:
                ignored.append(name)
        ignored += [name for name in state.inert if name not in used]
    loras = {}
    alpha = (metadata.get('lora') or {}).get('alpha')
    for label, found in networks.items():
        plain = unscale(found)
        if len(plain) < len(found):
            took.append('float8 weights times their scales')
        plain, lora = split_peft(plain, alpha)
        networks[label] = published_to_ours(plain) if is_published(plain) else plain
        if lora:
            loras[label] = lora
    return Contents(path, kind, networks, projector, metadata, container.others + sorted(ignored), steps, loras, took)


def _networks(container: Container) -> tuple[str, dict[str, Tensors], set[str]]:
    """The layout in words, the networks by label, and the names of their tensors in the file.

    Raises:
        ValueError: if there is none.
    """
    networks: dict[str, Tensors] = {}
    used: set[str] = set()
    prefix: str | None = None
    for label, state in container.states.items():
        if label == 'unlabelled':
            for own, prefix_ in LABELLED.items():
                if has_network(state.names, prefix_):
                    networks[own] = _under(state, prefix_, used)
            if networks:
                return 'published Lightning layout', networks, used
        prefix = next((prefix for prefix in UNLABELLED if has_network(state.names, prefix)), None)
        if prefix is not None:
            networks[label] = _under(state, prefix, used)
    if prefix is None or not networks:
        first = [name for state in container.states.values() for name in state.tensors][:3]
        names = ', '.join(name[:60] for name in first) or 'none'
        raise ValueError(f'no PixNerd network in this file; its first tensors are {names}')
    if container.swapped is None:
        return f'keys under {prefix!r}' if prefix else 'bare keys', networks, used
    # mmengine's EMA hook swaps: state_dict has the averages, ema_state_dict the weights that are trained. Frozen ones
    # are in state_dict only. Its own hook follows the whole model, ours the network.
    raw = _under(container.swapped, prefix, set())
    averaged = networks['unlabelled']
    return 'mmengine training checkpoint', {'ema': averaged, 'raw': {**averaged, **raw}}, used


def _under(state: State, prefix: str, used: set[str]) -> Tensors:
    """The tensors of the network under ``prefix``, whose names are added to ``used``."""
    parts = {name.removeprefix(prefix).split('.')[0] for name in state.tensors if name.startswith(prefix)}
    for name, reason in state.inert.items():
        if name.startswith(prefix) and name.removeprefix(prefix).split('.')[0] in parts:
            raise ValueError(f'{name} is {reason[:100]}, and a plain tensor is due')
    found = {name.removeprefix(prefix): tensor for name, tensor in state.tensors.items() if name.startswith(prefix)}
    used |= {prefix + name for name in found}
    return found


def _read_metadata(tensor: LazyTensor) -> dict[str, Any]:
    if tensor.dtype != torch.uint8 or len(tensor.shape) != 1 or tensor.numel > MAX_TEXT:
        raise ValueError(f'its {METADATA_TENSOR} is {tensor.shape} of {tensor.dtype}, and a row of bytes is due')
    return parse_metadata_tensor(tensor.read())

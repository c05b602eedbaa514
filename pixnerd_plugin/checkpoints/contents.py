"""What networks a checkpoint file holds, whatever program wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors
from pixnerd_plugin.formats.safetensors_file import open_safetensors
from pixnerd_plugin.formats.schema import naming
from pixnerd_plugin.formats.torch_file import open_torch

from .layouts.lora import Lora, merge_lora, split_peft
from .layouts.names import LABELLED, METADATA_TENSOR, PROJECTOR, PUBLISHED_PROJECTOR, UNLABELLED, has_network
from .layouts.published import is_published, published_to_ours
from .metadata import METADATA_KEY, check_metadata, parse_metadata


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
    """

    path: Path
    kind: str
    networks: dict[str, Tensors]
    projector: Tensors
    metadata: dict[str, Any]
    ignored: list[str]
    steps: int | None
    loras: dict[str, Lora]

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
    if path.suffix == '.safetensors':
        tensors, texts = open_safetensors(path)
        with naming(path):
            metadata = parse_metadata(texts[METADATA_KEY]) if METADATA_KEY in texts else {}
            return _contents(path, tensors, metadata, [], None)
    content = open_torch(path)
    with naming(path):
        if not isinstance(content, dict):
            raise ValueError(f'a checkpoint holds a dict with state_dict, this holds a {type(content).__name__}')
        meta: dict = content['meta'] if isinstance(content.get('meta'), dict) else {}
        stored = meta.get(METADATA_KEY) or content.get(METADATA_KEY)
        others = [str(name) for name in content if name not in ('state_dict', 'ema_state_dict', 'meta', METADATA_KEY)]
        steps = content.get('global_step', meta.get('iter'))
        return _contents(
            path,
            _flat(content.get('state_dict', content)),
            {} if stored is None else check_metadata(stored),
            others if 'state_dict' in content else [],
            steps if isinstance(steps, int) else None,
            _flat(content.get('ema_state_dict')) if 'ema_state_dict' in content else None,
        )


def weights_file(path: Path) -> Path:
    """The file of weights in a diffusers folder; a file is itself.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if path.is_dir():
        for name in ('transformer/diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.safetensors'):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f'{path} is a folder without transformer/diffusion_pytorch_model.safetensors')
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    return path


def _flat(state: Any) -> Tensors:
    if not isinstance(state, dict):
        return {}
    return {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, LazyTensor)}


def _contents(
    path: Path,
    tensors: Tensors,
    metadata: dict[str, Any],
    ignored: list[str],
    steps: int | None,
    ema_state: Tensors | None = None,
) -> Contents:
    networks, used = {}, set()
    for label, prefix in LABELLED.items():
        if found := _under(tensors, prefix):
            networks[label] = found
            used |= {prefix + name for name in found}
    kind = 'published Lightning layout' if networks else ''
    if not networks:
        prefixes = [prefix for prefix in UNLABELLED if _under(tensors, prefix)]
        if not prefixes:
            raise ValueError(f'no PixNerd network in this file; its first tensors are {_first(tensors)}')
        prefix = prefixes[0]
        found = _under(tensors, prefix)
        used |= {prefix + name for name in found}
        kind = f'keys under {prefix!r}' if prefix else 'bare keys'
        if ema_state is None:
            networks['unlabelled'] = found
        else:
            # mmengine's EMA hook swaps: state_dict has the averages, ema_state_dict the weights that are trained.
            # Frozen ones are in state_dict only.
            kind = 'mmengine training checkpoint'
            # Mmengine's own hook follows the whole model, ours the network.
            own = f'module.{prefix}'
            raw = {name.removeprefix(own): tensor for name, tensor in ema_state.items() if name.startswith(own)}
            networks = {'ema': found, 'raw': {**found, **raw}}
    for found in networks.values():
        if METADATA_TENSOR in found:
            text = _text(found.pop(METADATA_TENSOR))
            metadata = metadata or parse_metadata(text)
    if (stored := metadata.get('weights')) in ('ema', 'raw'):
        if 'unlabelled' in networks:
            networks = {stored: networks['unlabelled']}
        # Written under both names, for programs that want both.
        networks = {stored: networks[stored]} if stored in networks else networks
    projector = {}
    for prefix in (PUBLISHED_PROJECTOR, PROJECTOR):
        for name in tensors:
            if name.startswith(prefix) and name not in used:
                projector[name.removeprefix(prefix)] = tensors[name]
                used.add(name)
    loras = {}
    alpha = (metadata.get('lora') or {}).get('alpha')
    for label, found in networks.items():
        plain, lora = split_peft(found, alpha)
        networks[label] = published_to_ours(plain) if is_published(plain) else plain
        if lora:
            loras[label] = lora
    return Contents(path, kind, networks, projector, metadata, ignored + sorted(set(tensors) - used), steps, loras)


def _under(tensors: Mapping[str, LazyTensor], prefix: str) -> Tensors:
    """The tensors of the network under ``prefix``, if there is one."""
    if not has_network(tensors.keys(), prefix):
        return {}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _text(tensor: LazyTensor) -> str:
    if tensor.dtype != torch.uint8 or len(tensor.shape) != 1:
        raise ValueError(f'its {METADATA_TENSOR} is {tensor.shape} of {tensor.dtype}, and a row of bytes is due')
    try:
        return tensor.read().numpy().tobytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'its {METADATA_TENSOR} is not a text ({error})') from None


def _first(tensors: Tensors) -> str:
    return ', '.join(name[:60] for name in list(tensors)[:3]) or 'none'

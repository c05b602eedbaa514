"""What a file of weights is, for people: parts, dtypes, metadata, what loads it, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixnerd_plugin.formats.lazy import Tensors
from pixnerd_plugin.formats.safetensors_file import open_safetensors

from .contents import Contents, open_contents, weights_file
from .layouts.lora import Lora, group_lora
from .load import checkpoint_of
from .metadata import variant_of

# Names that only Qwen3's text model has, with either prefix.
_TEXT_ENCODER = 'layers.0.self_attn.q_norm.weight'


def report(path: str | Path, values: bool = True) -> dict[str, Any]:
    """Describe a file, reading its headers and, with ``values``, one tensor after the other.

    Returns:
        ``file``, ``bytes``, ``kind``; ``networks`` by label, each with ``architecture``, ``variant``, ``parameters``,
        ``parts`` and ``dtypes``; ``metadata``, ``ignored``, ``loads_with`` and ``odd``, a list of sentences.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read at all.
    """
    path = weights_file(Path(path))
    result: dict[str, Any] = dict(file=str(path), bytes=path.stat().st_size)
    if path.suffix == '.safetensors' and (other := _other_kind(path)):
        return {**result, **other}
    contents = open_contents(path)
    networks = {label: _describe(contents, label, values) for label in contents.networks}
    result |= dict(kind=contents.kind, networks=networks, metadata=contents.metadata)
    if contents.loras:
        result['loras'] = {label: _describe_lora(lora) for label, lora in contents.loras.items()}
    if contents.projector:
        result['projector'] = _count(contents.projector)
    result |= dict(steps=contents.steps, ignored=contents.ignored)
    odd = [f'{label}: {sentence}' for label, network in networks.items() for sentence in network.pop('odd')]
    return {**result, 'loads_with': [] if odd else _readers(contents), 'odd': odd}


def _describe(contents: Contents, label: str, values: bool) -> dict[str, Any]:
    tensors = contents.networks[label]
    result: dict[str, Any] = dict(parameters=_count(tensors), parts=_parts(tensors), dtypes=_dtypes(tensors))
    odd = _odd_values(tensors) if values else []
    odd += [f'{name} is of {tensor.dtype}' for name, tensor in tensors.items() if not tensor.dtype.is_floating_point]
    try:
        checkpoint = checkpoint_of(contents, label)
        result |= dict(architecture=checkpoint.architecture, variant=variant_of(checkpoint.architecture))
        checkpoint.build()
    except ValueError as error:
        odd.append(str(error).removeprefix(f'{contents.path}: '))
    return {**result, 'odd': odd}


def _odd_values(tensors: Tensors) -> list[str]:
    odd = []
    for name, tensor in tqdm(tensors.items(), 'reading', unit='tensor', disable=None, leave=False):
        value = tensor.read().float()
        if not value.isfinite().all():
            odd.append(f'{name} holds NaN or infinite values')
        # An untrained network has these at zero; a trained one has none.
        elif not value.any():
            odd.append(f'{name} is all zeros')
    return odd


def _parts(tensors: Tensors) -> dict[str, int]:
    parts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts[name.split('.')[0]] += tensor.numel
    return dict(parts)


def _count(tensors: Tensors) -> int:
    return sum(tensor.numel for tensor in tensors.values())


def _dtypes(tensors: Tensors) -> dict[str, int]:
    return dict(Counter(str(tensor.dtype).removeprefix('torch.') for tensor in tensors.values()))


def _readers(contents: Contents) -> list[str]:
    readers = ['load_backbone', 'tools/sample.py', 'tools/convert_checkpoint.py']
    suffix, single = contents.path.suffix, len(contents.networks) == 1
    if suffix == '.safetensors' and single:
        readers.append('ComfyUI (PixNerdModelLoader)')
    if suffix == '.pth':
        readers.append('tools/train.py with load_from' + (' or --resume' if 'optimizer' in contents.ignored else ''))
    if contents.kind == 'published Lightning layout' and suffix == '.ckpt':
        readers.append('the released code')
    return readers


def _other_kind(path: Path) -> dict[str, Any] | None:
    """A description if this is an adapter or a text encoder."""
    tensors, texts = open_safetensors(path)
    common = dict(parameters=_count(tensors), dtypes=_dtypes(tensors), metadata=texts)
    if any(name.removeprefix('model.') == _TEXT_ENCODER for name in tensors):
        return dict(kind='Qwen3 text encoder', **common, loads_with=['ComfyUI (PixNerdTextEncoderLoader)'], odd=[])
    if any(name.endswith(('.lora_A.weight', '.lora_down.weight')) for name in tensors):
        readers = ["ComfyUI's LoRA loaders", 'tools/sample.py --lora', 'tools/convert_checkpoint.py --merge-lora']
        return dict(kind='LoRA', **common, lora=_describe_lora(group_lora(path, tensors)), loads_with=readers, odd=[])
    return None


def _describe_lora(lora: Lora) -> dict[str, Any]:
    ranks = sorted({adapter.down.shape[0] for adapter in lora.values()})
    alphas = sorted({adapter.alpha for adapter in lora.values() if adapter.alpha is not None})
    return dict(layers=len(lora), ranks=ranks, alphas=alphas)

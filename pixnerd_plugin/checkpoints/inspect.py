"""What a file of weights is, for people: parts, dtypes, metadata, what loads it, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pixnerd_plugin.formats.lazy import Tensors, is_finite
from pixnerd_plugin.formats.plain_file import parse_json
from pixnerd_plugin.formats.safetensors_file import open_safetensors
from pixnerd_plugin.formats.schema import naming

from .contents import Contents, open_contents, weights_file
from .layouts.lora import Lora, LoraFile, is_adapter, is_stock, open_lora
from .load import checkpoint_of
from .lora import is_lora
from .metadata import variant_of
from .text_encoder import is_text_encoder, open_text_encoder

# Names that only Qwen3's text model has, with either prefix.
_TEXT_ENCODER = 'layers.0.self_attn.q_norm.weight'

# The entry of a field trajectory's metadata.
_FIELD = 'pixnerd_field'


def report(path: str | Path, values: bool = True) -> dict[str, Any]:
    """Describe a file, reading its headers and, with ``values``, one tensor after the other.

    Returns:
        ``file``, ``bytes``, ``kind``; ``networks`` by label, each with ``architecture``, ``variant``, ``parameters``,
        ``parts`` and ``dtypes``; ``metadata``, ``took`` (what was seen to on the way to the network), ``ignored``,
        ``loads_with`` and ``odd``, a list of sentences.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read at all.
    """
    path = Path(path)
    if path.is_dir() and (other := _other_folder(path)):
        return other
    path = weights_file(path)
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
    result |= dict(steps=contents.steps, took=contents.took, ignored=contents.ignored)
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
        value = tensor.read()
        if not is_finite(value):
            odd.append(f'{name} holds NaN or infinite values')
        # An untrained network has these at zero; a trained one has none.
        elif not value.view(torch.uint8).any() if value.dtype.itemsize == 1 else not value.any():
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
    """A description if this is an adapter, a text encoder or a field trajectory."""
    tensors, texts = open_safetensors(path)
    common = dict(parameters=_count(tensors), dtypes=_dtypes(tensors), metadata=texts)
    if _FIELD in texts:
        common['metadata'] = {name: text for name, text in texts.items() if name != _FIELD}
        readers = ['FieldTrajectory.load', 'tools/render_field.py']
        with naming(path):
            field = _describe_field(texts[_FIELD], tensors)
        return dict(kind='field trajectory', **common, field=field, **_good(readers))
    if any(name.removeprefix('model.') == _TEXT_ENCODER for name in tensors):
        return dict(kind='Qwen3 text encoder', **common, **_good(['ComfyUI (PixNerdTextEncoderLoader)']))
    if is_adapter(tensors):
        return _describe_adapters(open_lora(path), common, stock=all(map(is_stock, tensors)))
    return None


def _other_folder(path: Path) -> dict[str, Any] | None:
    """A description if this is a text encoder's folder, or one that PEFT saved."""
    if is_lora(path):
        file = path / 'adapter_model.safetensors'
        tensors, texts = open_safetensors(file)
        common = dict(parameters=_count(tensors), dtypes=_dtypes(tensors), metadata=texts)
        return dict(file=str(file), bytes=file.stat().st_size, **_describe_adapters(open_lora(path), common, False))
    if is_text_encoder(path):
        tensors = open_text_encoder(path)
        readers = ['--text-encoder', 'tools/convert_checkpoint.py, to one file for ComfyUI']
        common = dict(parameters=_count(tensors), dtypes=_dtypes(tensors), metadata={})
        size = sum(tensor.nbytes for tensor in tensors.values())
        return dict(file=str(path), bytes=size, kind='Qwen3 folder (text encoder)', **common, **_good(readers))
    return None


def _good(readers: list[str]) -> dict[str, Any]:
    return dict(loads_with=readers, odd=[])


def _describe_adapters(found: LoraFile, common: dict[str, Any], stock: bool) -> dict[str, Any]:
    readers = ['tools/sample.py --lora', 'tools/convert_checkpoint.py --merge-lora or --layout lora']
    readers = ["ComfyUI's LoRA loaders", *readers] if stock else readers
    kinds = sorted({adapter.describe() for adapter in found.adapters.values()})
    lora = dict(_describe_lora(found.adapters), kinds=kinds)
    return dict(kind='LoRA', **common, lora=lora, ignored=found.skipped, **_good(readers))


def _describe_lora(lora: Lora) -> dict[str, Any]:
    ranks = sorted({adapter.rank for adapter in lora.values() if adapter.rank is not None})
    alphas = sorted({adapter.alpha for adapter in lora.values() if adapter.alpha is not None})
    return dict(layers=len(lora), ranks=ranks, alphas=alphas)


def _describe_field(text: str, tensors: Tensors) -> dict[str, Any]:
    """What a field's file is of, as far as it can be believed without opening it."""
    content = parse_json(text[: 2**20])
    found = content if type(content) is dict else {}
    parts = {name: found[name].get('type') for name in ('head', 'sampler') if type(found.get(name)) is dict}
    named = {name: kind for name, kind in parts.items() if type(kind) is str}
    pictures = tensors['noise'].shape if 'noise' in tensors else ()
    return dict(named, noise=list(pictures), evaluations=sum(name.startswith('tokens.') for name in tensors))

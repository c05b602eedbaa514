"""Qwen3 from a transformers folder to the one file that ComfyUI's users keep in ``models/text_encoders``."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from pixnerd_plugin.formats.lazy import Tensors
from pixnerd_plugin.formats.safetensors_file import open_safetensors, write_safetensors

from .convert import DTYPES, check_new, require_space, with_dtype

# The output layer of the language model; text encoding ends before it.
_UNUSED = 'lm_head.weight'


def is_text_encoder(folder: Path) -> bool:
    """Whether this is the folder of a Qwen3 model in transformers layout."""
    try:
        return json.loads((folder / 'config.json').read_text(encoding='utf-8')).get('model_type') == 'qwen3'
    except (OSError, ValueError, AttributeError):
        return False


def convert_text_encoder(folder: Path, target: Path, dtype: str | None = None, force: bool = False) -> None:
    """Write the weights of a Qwen3 folder, one file or shards, as one safetensors file under transformers' names.

    Raises:
        FileNotFoundError, FileExistsError: about source and target.
        ValueError: if the weights are damaged or incomplete.
    """
    check_new(target, ['.safetensors'], force)
    if dtype == 'float8':
        raise ValueError('float8 is for the network; its text encoder is bfloat16, as in training')
    tensors = _read_shards(folder)
    wanted = DTYPES.get(dtype or '')
    named: Tensors = {}
    for name, tensor in tensors.items():
        if name != _UNUSED:
            name = name if name.startswith('model.') else f'model.{name}'
            named[name] = with_dtype(f'{folder}: {name}', tensor, wanted)
    if 'model.layers.0.self_attn.q_norm.weight' not in named:
        raise ValueError(f'{folder}: not the weights of a Qwen3; its first tensors are {", ".join(list(named)[:3])}')
    size = sum(tensor.nbytes for tensor in named.values())
    require_space(target, size)
    with tqdm(total=size, desc='writing', unit='B', unit_scale=True, disable=None) as bar:
        write_safetensors(target, named, {}, bar.update)


def _read_shards(folder: Path) -> Tensors:
    index = folder / 'model.safetensors.index.json'
    if not index.is_file():
        if not (folder / 'model.safetensors').is_file():
            raise FileNotFoundError(f'{folder} has no model.safetensors: weights are read from safetensors files only')
        return open_safetensors(folder / 'model.safetensors')[0]
    try:
        places = dict(json.loads(index.read_text(encoding='utf-8'))['weight_map'])
        shards = sorted(set(places.values()))
        # A name that leads elsewhere is no shard of this folder.
        outside = [name for name in shards if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{index}: not an index of safetensors shards ({error})') from None
    if outside:
        raise ValueError(f'{index}: {outside[0]!r} is not in this folder')
    if absent := [name for name in shards if not (folder / name).is_file()]:
        raise FileNotFoundError(f'{folder} lacks {", ".join(absent)}')
    found: Tensors = {}
    for shard in shards:
        for name, tensor in open_safetensors(folder / shard)[0].items():
            if places.get(name) != shard or name in found:
                raise ValueError(f'{folder / shard}: {name!r} is there, and the index does not say so')
            found[name] = tensor
    if absent := sorted(set(places) - set(found)):
        raise ValueError(f'{folder}: {absent[0]} is in the index and in no shard')
    return found

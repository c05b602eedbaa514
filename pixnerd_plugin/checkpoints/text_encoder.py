"""Qwen3 from a transformers folder to the one file that ComfyUI's users keep in ``models/text_encoders``."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors
from pixnerd_plugin.formats.plain_file import read_json
from pixnerd_plugin.formats.safetensors_file import open_safetensors, write_safetensors
from pixnerd_plugin.formats.safetensors_index import SUFFIX as INDEX
from pixnerd_plugin.formats.safetensors_index import open_index

from .convert import DTYPES, check_new, require_space, with_dtype
from .words import WORDS_TENSOR, words_of_folder

# The output layer of the language model; text encoding ends before it.
_UNUSED = 'lm_head.weight'


def is_text_encoder(folder: Path) -> bool:
    """Whether this is the folder of a Qwen3 model in transformers layout."""
    try:
        config = read_json(folder / 'config.json')
    except (OSError, ValueError):
        return False
    return type(config) is dict and config.get('model_type') == 'qwen3'


def convert_text_encoder(folder: Path, target: Path, dtype: str | None = None, force: bool = False) -> None:
    """Write the weights of a Qwen3 folder, one file or shards, as one safetensors file under transformers' names.

    A tokenizer of words goes into it as one more small tensor; Qwen's own does not.

    Raises:
        FileNotFoundError, FileExistsError: about source and target.
        ValueError: if the weights are damaged or incomplete.
    """
    check_new(target, ['.safetensors'], force)
    if dtype == 'float8':
        raise ValueError('float8 is for the network; its text encoder is bfloat16, as in training')
    tensors = open_text_encoder(folder)
    wanted = DTYPES.get(dtype or '')
    named: Tensors = {}
    for name, tensor in tensors.items():
        if name != _UNUSED:
            name = name if name.startswith('model.') else f'model.{name}'
            named[name] = with_dtype(f'{folder}: {name}', tensor, wanted)
    if 'model.layers.0.self_attn.q_norm.weight' not in named:
        raise ValueError(f'{folder}: not the weights of a Qwen3; its first tensors are {", ".join(list(named)[:3])}')
    if (words := words_of_folder(folder)) is not None:
        named[WORDS_TENSOR] = LazyTensor.of(words.to_tensor())
    size = sum(tensor.nbytes for tensor in named.values())
    require_space(target, size)
    with tqdm(total=size, desc='writing', unit='B', unit_scale=True, disable=None) as bar:
        write_safetensors(target, named, {}, bar.update)


def open_text_encoder(folder: Path) -> Tensors:
    """The tensors of a folder in transformers layout, one file or pieces, not read yet; errors as above."""
    index = folder / f'model{INDEX}'
    if index.is_file():
        return open_index(index)[0]
    if not (folder / 'model.safetensors').is_file():
        raise FileNotFoundError(f'{folder} has no model.safetensors: weights are read from safetensors files only')
    return open_safetensors(folder / 'model.safetensors')[0]

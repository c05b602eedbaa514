"""Adapters from files, applied to a network or written anew for ComfyUI; PEFT is not needed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import nn

from pixnerd_plugin.formats.lazy import require_finite
from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.safetensors_file import open_safetensors, write_safetensors

from .convert import DTYPES, check_new, require_space, with_dtype
from .layouts.lora import LoraFile, is_adapter, lora_tensors, open_lora, read_lora, shapes_of

_STRENGTH = re.compile(r'(.+?):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)')


def parse_lora(text: str) -> tuple[str, float]:
    r"""``'FILE:STRENGTH'`` or ``'FILE'`` to both, the strength 1 if it is not said; ``C:\x`` is a file.

    Raises:
        ValueError: if there is no file's name in it, or the strength is no number from -1000 to 1000.
    """
    match = _STRENGTH.fullmatch(text)
    path, strength = (match[1], float(match[2])) if match else (text, 1.0)
    if not path or not math.isfinite(strength) or abs(strength) > 1000:
        raise ValueError(f'{text!r} is not FILE or FILE:STRENGTH, such as my_lora.safetensors:0.8')
    return path, strength


@torch.no_grad()
def apply_lora(net: nn.Module, path: str | Path, strength: float = 1.0) -> list[str]:
    """Add ``strength`` times the adapters of a file to the weights of a network, in place.

    Args:
        net: a backbone; weights are changed in their own dtype, the sum computed in float32.
        path: what :func:`~.layouts.lora.open_lora` reads: a file in the naming of PEFT, ComfyUI, Kohya, OneTrainer,
            diffusers or LyCORIS, or a folder that PEFT saved.

    Returns:
        The names of the file's entries that are of a text encoder of other models, which were left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another network; nothing is changed then.
    """
    weights = net.state_dict()
    found = read_lora(path, shapes_of(weights))
    changed = {
        name: require_finite(f'{path}: {name} with it', adapter.added_to(weights[name], strength))
        for name, adapter in found.adapters.items()
    }
    for name, weight in changed.items():
        net.get_parameter(name).copy_(weight)
    return found.skipped


def is_lora(path: Path) -> bool:
    """Whether this is a folder that PEFT saved, or a safetensors file of adapters alone."""
    if path.is_dir():
        return (path / 'adapter_model.safetensors').is_file()
    if path.suffix != '.safetensors':
        return False
    require_file(path, 'file')
    return is_adapter(open_safetensors(path)[0])


def convert_lora(source: Path, target: Path, dtype: str | None = None, force: bool = False) -> LoraFile:
    """Write adapters of any naming under the names that ComfyUI's stock LoRA loader applies, and return them.

    Raises:
        FileNotFoundError, FileExistsError: about source and target.
        ValueError: if the source is damaged, or no adapter.
    """
    check_new(target, ['.safetensors'], force)
    if dtype == 'float8':
        raise ValueError('float8 is for the network; an adapter is small')
    found = open_lora(source)
    tensors = {
        name: with_dtype(f'{source}: {name}', tensor, DTYPES.get(dtype or ''))
        for name, tensor in lora_tensors(found.adapters).items()
    }
    require_space(target, sum(tensor.nbytes for tensor in tensors.values()))
    write_safetensors(target, tensors, {})
    return found

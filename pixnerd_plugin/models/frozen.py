"""Frozen pretrained models beside the trained one: found offline, loaded once, kept out of state dicts and EMA."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pixnerd_plugin.formats.plain_file import read_json
from pixnerd_plugin.formats.safetensors_index import SUFFIX as INDEX
from pixnerd_plugin.formats.safetensors_index import shards_of
from pixnerd_plugin.formats.schema import naming, one_of, shown

# By any other name, transformers fetches code from the hub, and runs it.
_IMPLEMENTATIONS = ('attn_implementation', '_attn_implementation', 'experts_implementation', '_experts_implementation')
_OWN = one_of('eager', 'sdpa')

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


class FrozenModel:
    """A module that is used but never trained, and loaded at its first call.

    It is not an ``nn.Module``, so its tensors are not in the ``state_dict``, ``parameters`` or DDP of a model that
    holds it. Copies of that model share it. Gradients pass through it, to inputs that want them.

    Args:
        load: builds the module on the CPU.
    """

    def __init__(self, load: Callable[[], nn.Module]):
        self._load = load
        self._module: nn.Module | None = None
        self.device = torch.device('cpu')

    @property
    def module(self) -> Any:
        """The module, loaded at the first use."""
        if self._module is None:
            # Loading may draw random numbers on the CPU; training must not depend on when it happens.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                self._module = self._load().eval().requires_grad_(False).to(self.device)
        return self._module

    def to(self, device: torch.device | str) -> FrozenModel:
        """Set the device of the following calls, and move the weights there if they are loaded."""
        device = torch.device(device)
        if device != self.device:
            self.device = device
            if self._module is not None:
                self._module.to(device)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, enabled=False):
            return self.module(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModel:
        return self


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float32."""
    has_bf16 = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


def resolve_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f'dtype {name!r} is not one of {", ".join(DTYPES)}')
    return DTYPES[name]


def find_pretrained(model: str | Path, model_types: tuple[str, ...], example: str) -> Path:
    """Return the folder of a transformers model, after checking that it holds the right kind of model.

    Args:
        model: a folder, or the hub id of a model in the local cache. Nothing is downloaded.
        model_types: the accepted ``model_type`` values of its ``config.json``.
        example: a hub id to name in error messages.

    Raises:
        FileNotFoundError: if there is no such folder or cache entry, or it lacks a file.
        ValueError: if it holds another kind of model, or asks for code that is not of transformers.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _find_in_cache(str(model), example)
    if not (folder / 'config.json').exists():
        raise FileNotFoundError(f'{folder} has no config.json: give a folder in transformers layout, such as {example}')
    config = read_json(folder / 'config.json')
    found = config.get('model_type') if type(config) is dict else None
    if found not in model_types:
        raise ValueError(
            f'{folder} holds a {shown(found)} model, not {" or ".join(model_types)}; use one such as {example}'
        )
    with naming(folder / 'config.json'):
        for name in _IMPLEMENTATIONS:
            if config.get(name) is not None:
                _OWN.check(name, config[name])
    _require_weights(folder)
    return folder


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever transformers stumbles over in a file into a ValueError of one line that begins with ``what``."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'{what}: {lines[-1].strip()[:300]}') from error


def load_pretrained(model_class: Any, folder: Path, **kwargs: Any) -> nn.Module:
    """Load ``model_class`` from the safetensors files of a folder; every tensor of the model must be in them.

    Raises:
        ValueError: if the weights are damaged or incomplete.
    """
    with loading(f'the weights in {folder} do not load (download them again)'):
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    absent = sorted(info['missing_keys'])
    if absent:
        raise ValueError(
            f'the weights in {folder} lack {len(absent)} tensors of {model_class.__name__}: {absent[0]}, …'
        )
    return model


def _find_in_cache(model: str, example: str) -> Path:
    fix = f'give an existing folder, or fetch one first: hf download {example} --local-dir FOLDER'
    if not re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', model):
        raise FileNotFoundError(f'no folder {model}: {fix}')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise FileNotFoundError(f'{model} is neither a folder nor a model in the hub cache: {fix}') from None


def _require_weights(folder: Path) -> None:
    index = folder / f'model{INDEX}'
    needed = [path.name for path in shards_of(index)] if index.is_file() else ['model.safetensors']
    absent = [name for name in needed if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f'{folder} lacks {", ".join(absent)}; weights are read from safetensors files only')

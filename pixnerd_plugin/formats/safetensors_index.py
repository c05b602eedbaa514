"""Safetensors files in pieces: ``*.safetensors.index.json`` and the files that it names beside it."""

from __future__ import annotations

from pathlib import Path

from .lazy import Tensors
from .plain_file import read_json, require_file
from .safetensors_file import open_safetensors
from .schema import naming, shown

SUFFIX = '.safetensors.index.json'

MAX_SHARDS = 1000


def open_index(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of all pieces, and their metadata, having read headers only.

    Raises:
        FileNotFoundError: if a piece is missing.
        ValueError: if the index or a piece is damaged, or they do not agree.
    """
    places = _places(path)
    found: Tensors = {}
    texts: dict[str, str] = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        require_file(shard, 'piece of the weights')
        tensors, own = open_safetensors(shard)
        texts |= own
        for tensor in tensors:
            if places.get(tensor) != name:
                raise ValueError(f'{shard}: {tensor!r} is there, and {path.name} does not say so')
        found |= tensors
    if absent := places.keys() - found.keys():
        raise ValueError(f'{path}: {shown(min(absent))} is in none of the files it names')
    return found, texts


def shards_of(path: Path) -> list[Path]:
    """The files that an index names, in order; errors as in :func:`open_index`."""
    return [path.parent / name for name in sorted(set(_places(path).values()))]


def _places(path: Path) -> dict[str, str]:
    """The file of each tensor."""
    content = read_json(path)
    with naming(f'{path}: not an index of safetensors files'):
        places = content.get('weight_map') if type(content) is dict else None
        if type(places) is not dict or not all(type(name) is str for name in places.values()):
            raise ValueError('it has no weight_map of names')
        for name in places.values():
            # A name that leads elsewhere is none of this folder's.
            if (
                not name.isprintable()
                or Path(name).name != name
                or '\\' in name
                or ':' in name
                or not name.endswith('.safetensors')
            ):
                raise ValueError(f'{shown(name)} is not in this folder, or no .safetensors file')
        if len(set(places.values())) > MAX_SHARDS:
            raise ValueError(f'it names more than {MAX_SHARDS} files')
    return places

"""From any file that holds a network to the one that the next program reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pixnerd_plugin.formats.atomic import remove_abandoned
from pixnerd_plugin.formats.lazy import LazyTensor, Tensors, require_finite
from pixnerd_plugin.formats.safetensors_file import write_safetensors
from pixnerd_plugin.formats.safetensors_index import SUFFIX as INDEX
from pixnerd_plugin.formats.safetensors_index import shards_of
from pixnerd_plugin.formats.torch_writer import write_torch

from .contents import Contents, open_contents
from .layouts.lora import lora_tensors, merge_lora, read_lora, shapes_of
from .layouts.targets import comfyui_tensors, lightning_content, mmengine_content, published_tensors
from .load import Checkpoint, checkpoint_of
from .metadata import METADATA_KEY, VERSION, default_sampling, variant_of

DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
    'float8': torch.float8_e4m3fn,
}
# Suffixes of the files that a layout is written to.
LAYOUTS = {
    'comfyui': ('.safetensors',),
    'mmengine': ('.pth',),
    'published': ('.ckpt', '.safetensors'),
    'lora': ('.safetensors',),
}

# Room for headers and records' names.
_SLACK = 2**20


def convert(
    source: Path,
    target: Path,
    *,
    layout: str | None = None,
    weights: str | None = None,
    dtype: str | None = None,
    resolution: int | None = None,
    loras: Sequence[tuple[str, float]] = (),
    force: bool = False,
    plans: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write ``source`` anew as ``target``, holding one tensor in memory at a time, and return its metadata.

    Args:
        source: anything :func:`~.load.load_backbone` reads.
        target: ``.safetensors``, ``.pth`` or ``.ckpt``; it appears when it is complete.
        layout: ``'comfyui'`` (our names, one network; also what ``load_backbone`` likes best), ``'mmengine'`` (to train
            on), ``'published'`` (for the released code), or ``'lora'`` (the adapter of a training with LoRA, as ComfyUI
            applies it); by default what the suffix of ``target`` says.
        weights: ``'ema'`` or ``'raw'``; by default both where the layout has room for both, else EMA.
        dtype: a name in ``DTYPES``; by default that of the source. float8 leaves head, norms, biases and embeddings in
            bfloat16.
        resolution: side of the training pictures in pixels, where the source does not tell.
        loras: adapters to merge, each with its strength.
        force: replace ``target`` if it exists.
        plans: of :mod:`~pixnerd_plugin.sampling.plan`, added to those of the source; one of the same solver, guidance
            and number of steps is replaced.

    Raises:
        FileNotFoundError, FileExistsError: about source and target.
        ValueError: if the source is damaged or has no such form; one line.
        OSError: if the disk is too small; nothing has been written then.
    """
    layout = _check_target(target, layout, dtype, force)
    contents = open_contents(source)
    both = weights is None and layout in ('mmengine', 'published')
    labels = list(contents.networks) if both else [contents.label(weights or 'ema')]
    checkpoints = {label: _merge(checkpoint_of(contents, label), loras) for label in labels}
    networks = {label: _cast(checkpoint, DTYPES.get(dtype or '')) for label, checkpoint in checkpoints.items()}
    projector = {
        name: with_dtype(f'{contents.path}: projector {name}', tensor, DTYPES.get(dtype or ''))
        for name, tensor in contents.projector.items()
    }
    lora = lora_tensors(contents.loras.get(labels[0], {}))
    if layout == 'lora' and not lora:
        raise ValueError(f'{contents.path}: it is of no training with LoRA')
    parts = [lora] if layout == 'lora' else [*networks.values(), projector]
    size = sum(tensor.nbytes for part in parts for tensor in part.values())
    require_space(target, size)

    metadata = _metadata(contents, checkpoints[labels[0]], labels, resolution, plans)
    metadata['source'] = dict(name=source.name, sha256=_sha256(contents.path))
    text = {METADATA_KEY: json.dumps(metadata, ensure_ascii=False)}
    with tqdm(total=size, desc='writing', unit='B', unit_scale=True, disable=None) as bar:
        if layout == 'lora':
            write_safetensors(target, lora, text, bar.update)
        elif layout == 'comfyui':
            write_safetensors(target, comfyui_tensors(networks[labels[0]], metadata), text, bar.update)
        elif layout == 'mmengine':
            write_torch(target, mmengine_content(networks, projector, metadata, contents.steps), bar.update)
        elif target.suffix == '.ckpt':
            # The released code asks for both networks, and a tensor under two names takes no more room here.
            tensors = published_tensors(networks, projector, fill=True)
            write_torch(target, lightning_content(tensors, metadata, contents.steps), bar.update)
        else:
            write_safetensors(target, published_tensors(networks, projector, fill=False), text, bar.update)
    return metadata


def _check_target(target: Path, layout: str | None, dtype: str | None, force: bool) -> str:
    check_new(target, [suffix for suffixes in LAYOUTS.values() for suffix in suffixes], force)
    layout = layout or next(name for name, suffixes in LAYOUTS.items() if target.suffix in suffixes)
    if target.suffix not in LAYOUTS[layout]:
        raise ValueError(f'{target}: the {layout} layout is written to {" or ".join(LAYOUTS[layout])} files')
    if dtype == 'float8' and layout != 'comfyui':
        raise ValueError(f'float8 is for ComfyUI; the {layout} layout is for programs that do not compute with it')
    return layout


def check_new(target: Path, suffixes: Iterable[str], force: bool) -> None:
    """Refuse a target of another suffix, or one that is there already; remove what killed conversions to it left."""
    if target.suffix not in suffixes:
        raise ValueError(
            f'{target}: the name must end in {" or ".join(dict.fromkeys(suffixes))}, which says what to write'
        )
    if target.exists() and not force:
        raise FileExistsError(f'{target} exists; give --force to replace it')
    remove_abandoned(target)


def _merge(checkpoint: Checkpoint, loras: Sequence[tuple[str, float]]) -> Checkpoint:
    checkpoint.build()
    tensors = checkpoint.lazy
    for path, strength in loras:
        tensors = merge_lora(tensors, read_lora(path, shapes_of(tensors)).adapters, strength)
    return Checkpoint(checkpoint.path, tensors, checkpoint.architecture, checkpoint.metadata)


def _cast(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Tensors:
    tensors = {}
    for name, tensor in checkpoint.lazy.items():
        is_block_matrix = name.startswith(('blocks.', 'text_blocks.')) and len(tensor.shape) == 2
        wanted = torch.bfloat16 if dtype == torch.float8_e4m3fn and not is_block_matrix else dtype
        tensors[name] = with_dtype(f'{checkpoint.path}: {name}', tensor, wanted)
    return tensors


def with_dtype(name: str, tensor: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    """``tensor`` in another dtype, if one is given; reading it refuses what is not finite before or after."""
    if not tensor.dtype.is_floating_point:
        raise ValueError(f'{name} is of {tensor.dtype}, and weights are floating point')
    wanted = dtype or tensor.dtype

    def read() -> torch.Tensor:
        value = require_finite(name, tensor.read())
        if wanted == torch.float8_e4m3fn != value.dtype:
            # Beyond its range, torch's conversion gives NaN.
            value = value.clamp(torch.finfo(wanted).min, torch.finfo(wanted).max)
        return require_finite(f'{name} as {wanted}', value.to(wanted))

    return LazyTensor(wanted, tensor.shape, read)


def _metadata(
    contents: Contents,
    checkpoint: Checkpoint,
    labels: list[str],
    resolution: int | None,
    plans: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    stored, architecture = contents.metadata, checkpoint.architecture
    by_use = {
        (plan['type'], plan['order'], plan['guidance_scale'], len(plan['times'])): plan
        for plan in [*(stored.get('plans') or ()), *plans]
    }
    known = dict(
        version=VERSION,
        variant=variant_of(architecture),
        architecture=architecture,
        weights='both' if len(labels) > 1 else None if labels == ['unlabelled'] else labels[0],
        resolution=resolution or stored.get('resolution'),
        sampling=stored.get('sampling') or default_sampling(architecture),
        class_names=stored.get('class_names'),
        plans=list(by_use.values()) or None,
    )
    return {name: value for name, value in known.items() if value is not None}


def require_space(target: Path, size: int) -> None:
    """OSError if ``size`` bytes do not fit on the disk of ``target``."""
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size + _SLACK > free:
        raise OSError(f'{target} would take {size / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB left')


def _sha256(path: Path) -> str:
    """The digest of a file, or of the files that an index names, one after the other."""
    files = shards_of(path) if path.name.endswith(INDEX) else [path]
    digest = hashlib.sha256()
    size = sum(map(os.path.getsize, files))
    with tqdm(total=size, desc='hashing', unit='B', unit_scale=True, disable=None) as bar:
        for part in files:
            with open(part, 'rb') as file:
                while block := file.read(2**20):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()

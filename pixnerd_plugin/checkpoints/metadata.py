"""What a file says about its network besides the tensors, every entry checked.

It is one JSON object: ``architecture`` (the registry dict), ``weights`` (``'ema'``, ``'raw'`` or ``'both'``),
``variant``, ``resolution`` (side of the training pictures in pixels), ``sampling`` (a sampler's registry dict),
``plans`` (times and guided steps chosen for a few steps), ``class_names``, ``lora``, ``source`` (``name`` and
``sha256`` of the file it was made from) and ``version`` of this layout. All are optional, and what is not known is left
out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.formats.parts import DESCRIPTION, check_part, is_known_part
from pixnerd_plugin.formats.plain_file import parse_json
from pixnerd_plugin.formats.schema import integer, naming, number, one_of, sequence, shown, table, text, texts

METADATA_KEY = 'pixnerd'
"""Entry of a safetensors file's metadata, and of mmengine's ``meta``."""

VERSION = 1

# A hundred thousand names of classes fit.
MAX_TEXT = 2 * 2**20

# Sizes of the published networks: head, dim, depth, depth of the head.
_VARIANTS = {
    ('NeuralFieldHead', 1024, 22, 2): 'pixnerd_l16',
    ('NeuralFieldHead', 1152, 26, 4): 'pixnerd_xl16',
    ('NeuralFieldHead', 1536, 16, 2): 'pixnerd_xxl16_t2i',
    ('DeCoHead', 1024, 22, 3): 'deco_l16',
    ('DeCoHead', 1152, 28, 3): 'deco_xl16',
    ('DeCoHead', 1536, 16, 3): 'deco_xxl16_t2i',
}

_CLASS_SAMPLING = dict(
    type='EulerFlowSampler', num_steps=100, guidance_scale=3.5, guidance_interval=[0.1, 1.0], timeshift=1.0
)
_TEXT_SAMPLING = dict(
    type='AdamsFlowSampler', num_steps=25, order=2, guidance_scale=4.0, guidance_interval=[0.0, 1.0], timeshift=3.0
)


def parse_metadata(text: str) -> dict[str, Any]:
    """The metadata in the JSON text of a safetensors file; errors as in :func:`check_metadata`."""
    if len(text) > MAX_TEXT:
        raise ValueError(f'its {METADATA_KEY} metadata has {len(text)} characters, and at most {MAX_TEXT} are read')
    with naming(f'its {METADATA_KEY} metadata'):
        content = parse_json(text)
    return check_metadata(content)


def parse_metadata_tensor(tensor: Tensor) -> dict[str, Any]:
    """The metadata in the bytes of ``METADATA_TENSOR``; errors as in :func:`check_metadata`."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or tensor.numel() > MAX_TEXT:
        raise ValueError(f'its metadata tensor is {tuple(tensor.shape)} of {tensor.dtype}, and a row of bytes is due')
    try:
        text = bytes(tensor.tolist()).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'its metadata tensor is not a text ({error})') from None
    return parse_metadata(text)


def check_metadata(content: Any) -> dict[str, Any]:
    """The entries of ``content`` that are known, each checked; without a sampler that is none of PixNerd.

    Raises:
        ValueError: naming the entry that is not well formed.
    """
    if type(content) is not dict:
        raise ValueError(f'its {METADATA_KEY} metadata is not a table')
    version = content.get('version', VERSION)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f'its metadata has version {shown(version)}, made by a newer PixNerd plugin; update this one')
    # Entries that are not known may be of any size and shape.
    known = {name: content[name] for name in _RULES if content.get(name) is not None}
    sampling = known.get('sampling')
    kind = sampling.get('type') if type(sampling) is dict else None
    if type(kind) is str and kind.isidentifier() and not is_known_part(sampling, 'sampler'):
        # A sampler of somebody's own, not imported here: the network does not need it.
        del known['sampling']
        warnings.warn(
            f'sampler {kind!r} of the file is none of PixNerd, and the published one takes its place; import the '
            'module that registers it first (--import MODULE on the command line)',
            stacklevel=2,
        )
    elif sampling is not None:
        with naming('its metadata: sampling'):
            check_part(sampling, 'sampler')
    if 'architecture' in known:
        with naming('its metadata'):
            _check_architecture(known['architecture'])
    for name, value in known.items():
        _RULES[name].check(f'its metadata: {name}', value)
    return known


def _check_architecture(value: Any) -> None:
    if type(value) is not dict:
        raise ValueError(f'architecture is {shown(value)}, and a table is due')
    check_part({name: item for name, item in value.items() if name != 'head'}, 'backbone')
    head = value.get('head')
    kind = head.get('type') if type(head) is dict else None
    # One of the user's own may be registered later, or only be looked at.
    if is_known_part(head, 'head') or type(kind) is not str or not kind.isidentifier():
        check_part(head, 'head')


# A network of mean velocities has its guidance learned.
_FEW_STEPS_SAMPLING = dict(type='MeanFlowSampler', num_steps=2, timeshift=1.0)


def variant_of(architecture: Mapping[str, Any]) -> str:
    """The published variant of this size, or ``'custom'``."""
    head = architecture['head']
    size = (head['type'], architecture['dim'], architecture['depth'], head.get('depth', 0))
    name = _VARIANTS.get(size, 'custom')
    is_text = 'text_dim' in architecture
    return name if name == 'custom' or is_text == name.endswith('t2i') else 'custom'


def default_sampling(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The published sampler of the class or text networks, or that of mean velocities, as a registry dict."""
    if architecture.get('step_end'):
        return dict(_FEW_STEPS_SAMPLING)
    if 'text_dim' in architecture:
        return dict(_TEXT_SAMPLING)
    # DeCo's class networks are published with a guidance scale of 3.2 at 256 pixels.
    return _CLASS_SAMPLING | (dict(guidance_scale=3.2) if architecture['head']['type'] == 'DeCoHead' else {})


_RULES = dict(
    version=integer(1, VERSION),
    architecture=DESCRIPTION,
    weights=one_of('ema', 'raw', 'both'),
    variant=text(100),
    resolution=integer(1, 2**16),
    sampling=DESCRIPTION,
    plans=sequence(
        table(
            ('type', 'order', 'guidance_scale', 'guidance_interval', 'times'),
            type=text(100),
            order=integer(1, 4),
            guidance_scale=number(-1000.0, 1000.0),
            guidance_interval=sequence(number(-1000.0, 1000.0), 2, 2),
            times=sequence(number(0.0, 1.0), 2, 1001),
            error=number(0.0, 1e9),
        ),
        0,
        100,
    ),
    class_names=texts(10**6, MAX_TEXT),
    lora=table(rank=integer(1, 2**16), alpha=number(-1e9, 1e9)),
    source=table(name=text(1000), sha256=text(64)),
)

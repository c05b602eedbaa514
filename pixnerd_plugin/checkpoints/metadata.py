"""What a file says about its network besides the tensors, every entry checked.

It is one JSON object: ``architecture`` (the registry dict), ``weights`` (``'ema'``, ``'raw'`` or ``'both'``),
``variant``, ``resolution`` (side of the training pictures in pixels), ``sampling`` (a sampler's registry dict),
``class_names``, ``lora``, ``source`` (``name`` and ``sha256`` of the file it was made from) and ``version`` of this
layout. All are optional.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pixnerd_plugin.formats.parts import check_part, is_known_part
from pixnerd_plugin.formats.schema import naming, shown

METADATA_KEY = 'pixnerd'
"""Entry of a safetensors file's metadata, and of mmengine's ``meta``."""

VERSION = 1

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
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'its {METADATA_KEY} metadata is not JSON ({error})') from None
    return check_metadata(content)


def check_metadata(content: Any) -> dict[str, Any]:
    """Return ``content`` if every known entry is well formed, without a sampler that is none of PixNerd.

    Raises:
        ValueError: naming the entry that is not.
    """
    if not isinstance(content, dict):
        raise ValueError(f'its {METADATA_KEY} metadata is not a table')
    version = content.get('version', VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f'its metadata has version {version!r}, made by a newer PixNerd plugin; update this one')
    sampling = content.get('sampling')
    kind = sampling.get('type') if isinstance(sampling, dict) else None
    if isinstance(kind, str) and kind.isidentifier() and not is_known_part(sampling, 'sampler'):
        # A sampler of somebody's own, not imported here: the network does not need it.
        content = {name: value for name, value in content.items() if name != 'sampling'}
    elif sampling is not None:
        with naming('its metadata: sampling'):
            check_part(sampling, 'sampler')
    for name, is_well_formed in _CHECKS.items():
        if content.get(name) is not None and not is_well_formed(content[name]):
            raise ValueError(f'its metadata has {name}={shown(content[name])}, which no PixNerd network has')
    return content


def variant_of(architecture: Mapping[str, Any]) -> str:
    """The published variant of this size, or ``'custom'``."""
    head = architecture['head']
    size = (head['type'], architecture['dim'], architecture['depth'], head.get('depth', 0))
    name = _VARIANTS.get(size, 'custom')
    is_text = 'text_dim' in architecture
    return name if name == 'custom' or is_text == name.endswith('t2i') else 'custom'


def default_sampling(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The published sampler of the class or text networks, as a registry dict."""
    if 'text_dim' in architecture:
        return dict(_TEXT_SAMPLING)
    # DeCo's class networks are published with a guidance scale of 3.2 at 256 pixels.
    return _CLASS_SAMPLING | (dict(guidance_scale=3.2) if architecture['head']['type'] == 'DeCoHead' else {})


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= 10**6 and all(isinstance(name, str) for name in value)


def _is_lora(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) in (int, float) for name in ('rank', 'alpha'))


_CHECKS = {
    'architecture': lambda value: isinstance(value, dict),
    'weights': lambda value: value in ('ema', 'raw', 'both'),
    'variant': lambda value: isinstance(value, str),
    'resolution': lambda value: type(value) is int and 0 < value <= 2**16,
    'class_names': _is_names,
    'lora': _is_lora,
    'source': lambda value: isinstance(value, dict),
}

"""The architecture of a network, read from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pixnerd_plugin.formats.parts import check_part

Shapes = Mapping[str, tuple[int, ...]]

# Far above any network; building more blocks than that would take minutes, which a malicious file could ask for.
MAX_DEPTH = 512

_HEADS = ('NeuralFieldHead', 'DeCoHead', 'LinearHead')

# Arguments that leave no trace in the tensors.
_TRACELESS = {'position_rule', 'prediction'}
_TRACELESS_HEAD = {'coordinates', 'num_frequencies', 'normalize', 'alignment'}


def find_architecture(shapes: Shapes, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The registry dict of a network: from its shapes, and what they do not tell from ``stored``, that of its metadata.

    Raises:
        ValueError: if the tensors are not those of a PixNerd network, or ``stored`` contradicts them.
    """
    kind = (stored.get('head') or {}).get('type') if stored is not None else None
    is_own = kind is not None and kind not in _HEADS
    if is_own:
        # A head of the user's own, whose tensors may have any names.
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith('head.')}
    architecture = infer_architecture(shapes)
    check_part({name: value for name, value in architecture.items() if name != 'head'}, 'backbone')
    check_part(architecture['head'], 'head')
    if stored is None:
        return architecture
    own = {name: value for name, value in stored.items() if name != 'head'}
    check_part(own, 'backbone')
    check_part(stored.get('head'), 'head')
    inferred = architecture.pop('head')
    head = dict(stored['head']) if is_own else _merge_head(inferred, stored['head'])
    # A linear head's tensors do not tell channels from the patch's area.
    tells = head['type'] in ('NeuralFieldHead', 'DeCoHead')
    traceless = _TRACELESS if tells else {*_TRACELESS, 'in_channels', 'patch_size'}
    return {**_merge(architecture, own, traceless), 'head': head}


def _merge_head(inferred: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    if stored['type'] == inferred['type']:
        return _merge(inferred, stored, _TRACELESS_HEAD)
    raise ValueError(f'the metadata has head {stored["type"]}, and the tensors are of {inferred["type"]}')


def _merge(inferred: dict[str, Any], stored: Mapping[str, Any], traceless: set[str]) -> dict[str, Any]:
    """What the tensors tell, with what they do not tell taken from ``stored``."""
    for name, value in stored.items():
        if name not in inferred:
            raise ValueError(f'the metadata says {name}={value!r}, and the tensors are of a network without')
        if name not in traceless and value != inferred[name]:
            raise ValueError(f'the metadata says {name}={value!r}, and the tensors are of {name}={inferred[name]!r}')
    return {**inferred, **{name: value for name, value in stored.items() if name in traceless}}


def infer_architecture(shapes: Shapes) -> dict[str, Any]:
    """Return the registry dict of a :class:`PixNerdDiT` whose state dict has these shapes (our key layout).

    What leaves no trace in the tensors (coordinates, alignment, position rule, normalisation of the second field
    weight, the prediction) is set to the published variant: the velocity; DCT coordinates and both weights normalised
    for classes, cosines and the first only for text.

    Raises:
        ValueError: if the tensors are not those of a PixNerd network.
    """
    try:
        return _infer(shapes)
    except KeyError as error:
        raise ValueError(f'not a PixNerd network: tensor {error.args[0]!r} is missing') from None
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f'not a PixNerd network: its tensors have impossible shapes ({error})') from None


def _infer(shapes: Shapes) -> dict[str, Any]:
    def count(prefix: str) -> int:
        found = len({name.removeprefix(prefix).split('.')[0] for name in shapes if name.startswith(prefix)})
        if found > MAX_DEPTH:
            raise ValueError(f'{found} parts named {prefix}')
        return found

    dim, patch_values = shapes['patch_embed.weight']
    in_channels = shapes['head.pixel_embed.weight'][1] if 'head.pixel_embed.weight' in shapes else 3
    architecture = dict(
        type='PixNerdDiT',
        dim=dim,
        depth=count('blocks.'),
        num_heads=dim // shapes['blocks.0.attn.q_norm.weight'][0],
        patch_size=math.isqrt(patch_values // in_channels),
        in_channels=in_channels,
        # By first dimensions where there is a choice: four-bit formats pack two numbers along the second.
        mlp_hidden=shapes['blocks.0.mlp.gate_up.weight'][0] // 2,
        prediction='velocity',
    )
    if 'step_embed.fc1.weight' in shapes:
        architecture['step_end'] = True
    is_text = 'text_embed.positions' in shapes
    if is_text:
        architecture |= dict(
            position_rule='swapped_grid',
            text_dim=shapes['text_embed.proj.weight'][1],
            text_length=shapes['text_embed.positions'][1],
            text_depth=count('text_blocks.'),
        )
    else:
        architecture |= dict(position_rule='fixed_span', num_classes=shapes['label_embed.weight'][0] - 1)
    if 'head.cond_embed.weight' in shapes:
        architecture['head'] = _infer_deco(shapes, is_text, count('head.blocks.'))
    else:
        architecture['head'] = _infer_head(shapes, is_text, count('head.norms.'))
    return architecture


def _infer_deco(shapes: Shapes, is_text: bool, depth: int) -> dict[str, Any]:
    width, features = shapes['head.coord_embed.weight']
    coordinates, num_frequencies = _infer_coordinates(features, is_text)
    return dict(type='DeCoHead', width=width, depth=depth, coordinates=coordinates, num_frequencies=num_frequencies)


def _infer_coordinates(features: int, is_text: bool) -> tuple[str, int]:
    """Kind and frequencies of so many coordinate features; only sine-cosine ones can number other than a square."""
    root = math.isqrt(features)
    return (('cosine' if is_text else 'dct'), root) if root**2 == features else ('sincos', features // 4)


def _infer_head(shapes: Shapes, is_text: bool, depth: int) -> dict[str, Any]:
    if 'head.pixel_embed.weight' not in shapes:
        return dict(type='LinearHead')
    width, features = shapes['head.coord_embed.weight']
    output_norm = 'head.norm.weight' in shapes
    coordinates, num_frequencies = _infer_coordinates(features, is_text)
    return dict(
        type='NeuralFieldHead',
        width=width,
        depth=depth,
        mlp_ratio=shapes['head.generator.weight'][0] // (2 * depth * width**2),
        coordinates=coordinates,
        num_frequencies=num_frequencies,
        normalize='fc1_fc2_output' if output_norm else 'fc1' if is_text else 'fc1_fc2',
        alignment='corners',
    )

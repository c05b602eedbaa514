"""The architecture of a network, read from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def infer_architecture(shapes: Shapes) -> dict[str, Any]:
    """Return the registry dict of a :class:`PixNerdDiT` whose state dict has these shapes (our key layout).

    What leaves no trace in the tensors (coordinates, alignment, position rule, normalisation of the second field weight)
    is set to the published variant: DCT coordinates and both weights normalised for classes, cosines and the first only
    for text.

    Raises:
        ValueError: if the tensors are not those of a PixNerd network.
    """
    try:
        return _infer(shapes)
    except KeyError as error:
        raise ValueError(f'not a PixNerd network: tensor {error.args[0]!r} is missing') from None


def _infer(shapes: Shapes) -> dict[str, Any]:
    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split('.')[0] for name in shapes if name.startswith(prefix)})

    dim, patch_values = shapes['patch_embed.weight']
    in_channels = shapes['head.pixel_embed.weight'][1] if 'head.pixel_embed.weight' in shapes else 3
    architecture = dict(
        type='PixNerdDiT',
        dim=dim,
        depth=count('blocks.'),
        num_heads=dim // shapes['blocks.0.attn.q_norm.weight'][0],
        patch_size=math.isqrt(patch_values // in_channels),
        in_channels=in_channels,
        mlp_hidden=shapes['blocks.0.mlp.down.weight'][1],
    )
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
    architecture['head'] = _infer_head(shapes, is_text, count('head.norms.'))
    return architecture


def _infer_head(shapes: Shapes, is_text: bool, depth: int) -> dict[str, Any]:
    if 'head.pixel_embed.weight' not in shapes:
        return dict(type='LinearHead')
    width, features = shapes['head.coord_embed.weight']
    output_norm = 'head.norm.weight' in shapes
    num_frequencies = math.isqrt(features)
    squared = num_frequencies**2 == features
    return dict(
        type='NeuralFieldHead',
        width=width,
        depth=depth,
        mlp_ratio=shapes['head.generator.weight'][0] // (2 * depth * width**2),
        # Only sine-cosine features can number other than a square.
        coordinates=('cosine' if is_text else 'dct') if squared else 'sincos',
        num_frequencies=num_frequencies if squared else features // 4,
        normalize='fc1_fc2_output' if output_norm else 'fc1' if is_text else 'fc1_fc2',
        alignment='corners',
    )

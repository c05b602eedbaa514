"""The key layout of the published checkpoints, piece by piece, and exact conversion to ours and back."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.formats.lazy import LazyTensor


class Piece(NamedTuple):
    """One correspondence: ``ours.chunk(parts)[part] == theirs[:, columns]``, along rows of ours."""

    ours: str
    theirs: str
    part: int = 0
    parts: int = 1
    columns: slice | None = None


_SAME = ('norm1.weight', 'norm2.weight', 'attn.q_norm.weight', 'attn.k_norm.weight')
_PROJ = ('attn.proj.weight', 'attn.proj.bias')
_BOTH = ('weight', 'bias')

IN_CHANNELS = 3


def _block(ours: str, theirs: str, joint: bool, text: bool) -> list[Piece]:
    pieces = [Piece(ours + name, theirs + name) for name in _SAME + _PROJ]
    for name in ('weight', 'bias'):
        pieces.append(Piece(f'{ours}modulation.{name}', f'{theirs}adaLN_modulation.0.{name}'))
    pieces.append(Piece(ours + 'attn.qkv.weight', theirs + ('attn.qkv_x.weight' if joint else 'attn.qkv.weight')))
    if joint:
        pieces.append(Piece(ours + 'attn.text_kv.weight', theirs + 'attn.kv_y.weight'))
    if text:
        pieces.append(Piece(ours + 'mlp.gate_up.weight', theirs + 'mlp.w12.weight'))
        pieces.append(Piece(ours + 'mlp.down.weight', theirs + 'mlp.w3.weight'))
    else:
        pieces.append(Piece(ours + 'mlp.gate_up.weight', theirs + 'mlp.w1.weight', 0, 2))
        pieces.append(Piece(ours + 'mlp.gate_up.weight', theirs + 'mlp.w3.weight', 1, 2))
        pieces.append(Piece(ours + 'mlp.down.weight', theirs + 'mlp.w2.weight'))
    return pieces


def layout(
    depth: int, text_depth: int, head_depth: int, text: bool, output_norm: bool, deco: bool = False
) -> list[Piece]:
    """All pieces of a network of this shape, with a neural field head or DeCo's."""
    pieces = [Piece(f'patch_embed.{name}', f's_embedder.proj.{name}') for name in _BOTH]
    for ours, theirs in (('fc1', '0'), ('fc2', '2')):
        pieces += [Piece(f'time_embed.{ours}.{name}', f't_embedder.mlp.{theirs}.{name}') for name in _BOTH]
    if text:
        pieces += [Piece(f'text_embed.proj.{name}', f'y_embedder.proj.{name}') for name in _BOTH]
        pieces.append(Piece('text_embed.norm.weight', 'y_embedder.norm.weight'))
        pieces.append(Piece('text_embed.positions', 'y_pos_embedding'))
    else:
        pieces.append(Piece('label_embed.weight', 'y_embedder.embedding_table.weight'))
    for i in range(text_depth):
        pieces += _block(f'text_blocks.{i}.', f'text_refine_blocks.{i}.', joint=False, text=text)
    for i in range(depth):
        pieces += _block(f'blocks.{i}.', f'blocks.{i}.', joint=text, text=text)

    embedder = 'x_embedder.embedder.0.'
    pieces.append(Piece('head.pixel_embed.weight', embedder + 'weight', columns=slice(None, IN_CHANNELS)))
    pieces.append(Piece('head.coord_embed.weight', embedder + 'weight', columns=slice(IN_CHANNELS, None)))
    pieces.append(Piece('head.coord_embed.bias', embedder + 'bias'))
    pieces += _deco_head(head_depth) if deco else _field_head(depth, head_depth, output_norm)
    return pieces


def _field_head(depth: int, head_depth: int, output_norm: bool) -> list[Piece]:
    pieces = []
    for i in range(head_depth):
        # The field blocks follow the transformer's in the published numbering.
        theirs = f'blocks.{depth + i}.'
        pieces.append(Piece(f'head.norms.{i}.weight', theirs + 'norm.weight'))
        for name in _BOTH:
            pieces.append(Piece(f'head.generator.{name}', f'{theirs}param_generator1.0.{name}', i, head_depth))
    if output_norm:
        pieces.append(Piece('head.norm.weight', 'final_layer.norm.weight'))
    return pieces + [Piece(f'head.proj.{name}', f'final_layer.linear.{name}') for name in _BOTH]


def _deco_head(head_depth: int) -> list[Piece]:
    pairs = {'cond_embed': 'cond_embed', 'input_proj': 'input_proj', 'proj': 'final_layer.linear'}
    for i in range(head_depth):
        for ours, theirs in (
            ('norm', 'in_ln'),
            ('fc1', 'mlp.0'),
            ('fc2', 'mlp.2'),
            ('modulation', 'adaLN_modulation.1'),
        ):
            pairs[f'blocks.{i}.{ours}'] = f'res_blocks.{i}.{theirs}'
    return [
        Piece(f'head.{ours}.{name}', f'dec_net.{theirs}.{name}') for ours, theirs in pairs.items() for name in _BOTH
    ]


def is_published(keys: Iterable[str]) -> bool:
    """Whether the keys are in the published layout."""
    return 's_embedder.proj.weight' in set(keys)


def layout_of(keys: Iterable[str]) -> list[Piece]:
    """The layout of a network known by its published keys."""
    keys = set(keys)

    def count(pattern: str) -> int:
        return len({match[match.lastindex or 0] for key in keys if (match := re.fullmatch(pattern, key))})

    return layout(
        depth=count(r'blocks\.(\d+)\.attn\.proj\.weight'),
        text_depth=count(r'text_refine_blocks\.(\d+)\.attn\.proj\.weight'),
        head_depth=count(r'blocks\.(\d+)\.param_generator1\.0\.weight|dec_net\.res_blocks\.(\d+)\.in_ln\.weight'),
        text='y_pos_embedding' in keys,
        output_norm='final_layer.norm.weight' in keys,
        deco='dec_net.cond_embed.weight' in keys,
    )


def published_to_ours(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Convert tensors in the published layout to ours, exactly.

    Raises:
        ValueError: if tensors are missing, left over or of shapes that do not fit together; the message names them.
    """
    pieces = layout_of(tensors)
    expected = {piece.theirs for piece in pieces}
    if problem := describe_difference(expected, set(tensors)):
        raise ValueError(f'not a PixNerd checkpoint in the published layout: {problem}')
    groups: dict[str, list[LazyTensor]] = defaultdict(list)
    for piece in pieces:
        tensor = tensors[piece.theirs]
        groups[piece.ours].append(tensor if piece.columns is None else _columns(tensor, piece.theirs, piece.columns))
    return {name: _cat(name, parts, dim=0) for name, parts in groups.items()}


def ours_to_published(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Convert the tensors of a network with a neural field head, or DeCo's, to the published layout, exactly.

    Raises:
        ValueError: if the network has no form there; the message names what does not fit.
    """
    blocks = {name.split('.')[1] for name in tensors if name.startswith('blocks.')}
    text_blocks = {name.split('.')[1] for name in tensors if name.startswith('text_blocks.')}
    head_blocks = {name.split('.')[2] for name in tensors if name.startswith(('head.norms.', 'head.blocks.'))}
    pieces = layout(
        len(blocks),
        len(text_blocks),
        len(head_blocks),
        text='text_embed.positions' in tensors,
        output_norm='head.norm.weight' in tensors,
        deco='head.cond_embed.weight' in tensors,
    )
    if problem := describe_difference({piece.ours for piece in pieces}, set(tensors)):
        raise ValueError(f'this network has no form in the published layout: {problem}')
    groups: dict[str, list[LazyTensor]] = defaultdict(list)
    for piece in pieces:
        groups[piece.theirs].append(_rows(tensors[piece.ours], piece.part, piece.parts))
    return {name: _cat(name, parts, dim=1) for name, parts in groups.items()}


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`published_to_ours` of a state dict in memory."""
    converted = published_to_ours({name: LazyTensor.of(tensor) for name, tensor in tensors.items()})
    return {name: tensor.read() for name, tensor in converted.items()}


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`ours_to_published` of a state dict in memory."""
    converted = ours_to_published({name: LazyTensor.of(tensor) for name, tensor in tensors.items()})
    return {name: tensor.read() for name, tensor in converted.items()}


def _columns(tensor: LazyTensor, name: str, columns: slice) -> LazyTensor:
    if len(tensor.shape) != 2:
        raise ValueError(f'{name} is {tensor.shape}, and a matrix is due')
    shape = (tensor.shape[0], len(range(tensor.shape[1])[columns]))
    return LazyTensor(tensor.dtype, shape, lambda: tensor.read()[:, columns].contiguous())


def _rows(tensor: LazyTensor, part: int, parts: int) -> LazyTensor:
    if parts == 1:
        return tensor
    shape = (tensor.shape[0] // parts, *tensor.shape[1:])
    return LazyTensor(tensor.dtype, shape, lambda: tensor.read().chunk(parts)[part].clone())


def _cat(name: str, parts: list[LazyTensor], dim: int) -> LazyTensor:
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        # Sizes along any other dimension must agree, and torch would promote dtypes without a word.
        if (
            part.dtype != first.dtype
            or part.shape[:dim] + part.shape[dim + 1 :] != first.shape[:dim] + first.shape[dim + 1 :]
        ):
            raise ValueError(
                f'the parts of {name} differ: {first.shape} of {first.dtype}, {part.shape} of {part.dtype}'
            )
    size = sum(part.shape[dim] for part in parts)
    shape = (*first.shape[:dim], size, *first.shape[dim + 1 :])
    return LazyTensor(first.dtype, shape, lambda: torch.cat([part.read() for part in parts], dim=dim))


def describe_difference(expected: set[str], found: set[str]) -> str:
    """One line on what is missing and what is left over, or an empty string."""

    def some(names: set[str]) -> str:
        # A name in a file may be of any length.
        shown = ', '.join(name if len(name) <= 100 else f'{name[:97]}...' for name in sorted(names)[:3])
        return shown if len(names) <= 3 else f'{shown} and {len(names) - 3} more'

    missing, extra = expected - found, found - expected
    parts = [f'missing {some(missing)}'] if missing else []
    parts += [f'unexpected {some(extra)}'] if extra else []
    return '; '.join(parts)

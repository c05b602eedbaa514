"""What the kinds of adapters add to a weight: LoRA, DoRA, LoHa, LoKr, and the difference itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.formats.lazy import LazyTensor

Shape = tuple[int, ...]

# The parts that each kind is known by; an alpha may be with any but the last.
_KINDS = {
    'LoRA': ('down', 'up'),
    'LoHa': ('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'),
    'LoKr': (),
    'difference': ('diff',),
}


class Adapter(NamedTuple):
    """A change of one weight.

    Args:
        kind: ``'LoRA'`` (``alpha / rank * up @ down``; Hu et al., 2021), ``'LoHa'`` (the elementwise product of two of
            those; Hyeon-Woo et al., 2021), ``'LoKr'`` (a Kronecker product; Yeh et al., 2023) or ``'difference'``.
        parts: its tensors by role; ``magnitude`` beside a LoRA makes it a DoRA (Liu et al., 2024).
        alpha: its factor times its rank; None for a factor of 1.
    """

    kind: str
    parts: Mapping[str, LazyTensor]
    alpha: float | None = None

    @property
    def rank(self) -> int | None:
        """The inner size, which ``alpha`` is divided by; None where there is none."""
        for name in ('down', 'hada_w1_b', 'lokr_w2_b', 'lokr_w1_b'):
            if name in self.parts:
                return self.parts[name].shape[0]
        return None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def shape(self) -> Shape | None:
        """The shape of the weight that it changes; None if its parts do not fit together."""
        shapes = {name: part.shape for name, part in self.parts.items()}
        if self.kind == 'difference':
            return shapes['diff']
        if self.kind == 'LoRA':
            return _product(shapes['up'], shapes['down'])
        if self.kind == 'LoHa':
            first = _product(shapes['hada_w1_a'], shapes['hada_w1_b'])
            return first if first == _product(shapes['hada_w2_a'], shapes['hada_w2_b']) else None
        first, second = (
            shapes[name] if name in shapes else _product(shapes[f'{name}_a'], shapes[f'{name}_b']) for name in _FACTORS
        )
        return None if first is None or second is None else (first[0] * second[0], first[1] * second[1])

    def fits(self, shape: Shape) -> bool:
        """Whether this changes a weight of this shape."""
        magnitude = self.parts.get('magnitude')
        if magnitude is not None and magnitude.shape not in (shape[:1], (shape[0], 1), (1, *shape[1:])):
            return False
        return self.shape == shape and self.rank != 0

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """``weight`` with ``strength`` times the adapter added, computed in float32, in its own dtype."""
        parts = {name: part.read().to(weight.device).float() for name, part in self.parts.items()}
        base, change = weight.float(), self.scale * _change(self.kind, parts)
        if 'magnitude' in parts:
            # DoRA, eq. 5: the direction changes, and a trained number a row (or a column) is its length.
            along = 0 if parts['magnitude'].shape == (1, *weight.shape[1:]) and len(weight) > 1 else 1
            moved = base + change
            lengths = moved.norm(dim=along, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            change = moved * (parts['magnitude'].reshape(lengths.shape) / lengths) - base
        return (base + strength * change).to(weight.dtype)

    def describe(self) -> str:
        return 'DoRA' if 'magnitude' in self.parts else self.kind


_FACTORS = ('lokr_w1', 'lokr_w2')


def adapter_of(parts: Mapping[str, LazyTensor], alpha: float | None) -> Adapter:
    """The adapter that these parts make.

    Raises:
        ValueError: if they are of no kind that is known, or some are missing.
    """
    names = set(parts)
    if names <= {'down', 'up', 'magnitude'}:
        kind = 'LoRA'
    elif any(name.startswith('hada_') for name in names):
        kind = 'LoHa'
    elif any(name.startswith('lokr_') for name in names):
        kind = 'LoKr'
    else:
        kind = 'difference'
    needed = set(_KINDS[kind])
    if kind == 'LoKr':
        for name in _FACTORS:
            needed |= {name} if name in names else {f'{name}_a', f'{name}_b'}
    if missing := sorted(needed - names):
        raise ValueError(f'has no {"lora_" if kind == "LoRA" else ""}{missing[0]}')
    if extra := sorted(names - needed - ({'magnitude'} if kind == 'LoRA' else set())):
        raise ValueError(f'has {extra[0]}, which is not known beside {", ".join(sorted(needed))}')
    for name, part in parts.items():
        if not part.dtype.is_floating_point or (len(part.shape) != 2 and name not in ('diff', 'magnitude')):
            raise ValueError(f'has {name} of shape {part.shape} and {part.dtype}, and a matrix of numbers is due')
    return Adapter(kind, parts, alpha)


def _product(a: Shape, b: Shape) -> Shape | None:
    return (a[0], b[1]) if len(a) == len(b) == 2 and a[1] == b[0] else None


def _change(kind: str, parts: Mapping[str, Tensor]) -> Tensor:
    if kind == 'difference':
        return parts['diff']
    if kind == 'LoRA':
        return parts['up'] @ parts['down']
    if kind == 'LoHa':
        return (parts['hada_w1_a'] @ parts['hada_w1_b']) * (parts['hada_w2_a'] @ parts['hada_w2_b'])
    first, second = (parts[name] if name in parts else parts[f'{name}_a'] @ parts[f'{name}_b'] for name in _FACTORS)
    return torch.kron(first, second)

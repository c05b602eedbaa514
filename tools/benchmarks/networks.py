"""The networks that are measured: ours, and the published ones from a user's own checkout, on the same weights."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.checkpoints.layouts.published import from_published
from pixnerd_plugin.registry import MODELS

NUM_CLASSES = 1000


@dataclass(frozen=True)
class Shape:
    """Size of a network (paper Table 1); ``text`` for the text-to-image layout, ``field_depth`` 0 for a linear head."""

    name: str
    dim: int
    depth: int
    num_heads: int
    field_depth: int
    text: bool = False
    text_dim: int = 2048
    text_length: int = 128
    text_depth: int = 4
    any_size: bool = False
    """Of the published layouts, the one whose patches may have any number of pixels."""

    def config(self) -> dict[str, Any]:
        """The registry dict of our network."""
        variant = dict(coordinates='cosine', normalize='fc1') if self.text else {}
        field = dict(type='NeuralFieldHead', depth=self.field_depth, **variant)
        condition = {name: getattr(self, name) for name in ('text_dim', 'text_length', 'text_depth')}
        return dict(
            type='PixNerdDiT',
            **{name: getattr(self, name) for name in ('dim', 'depth', 'num_heads')},
            head=field if self.field_depth else dict(type='LinearHead'),
            **(condition if self.text else dict(num_classes=NUM_CLASSES)),
        )

    def conditions(self, batch: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A batch of conditions and its null conditions."""
        if self.text:
            size = (batch, self.text_length, self.text_dim)
            return torch.randn(size, dtype=dtype, device=device), torch.randn(size, dtype=dtype, device=device)
        null = torch.full((batch,), NUM_CLASSES, device=device)
        return torch.arange(batch, device=device) % NUM_CLASSES, null


SHAPES = {
    shape.name: shape
    for shape in (
        Shape('baseline-l16', 1024, 24, 16, field_depth=0),
        Shape('l16', 1024, 22, 16, field_depth=2),
        Shape('xl16', 1152, 26, 16, field_depth=4),
        Shape('xxl16', 1536, 16, 24, field_depth=2, text=True),
        Shape('tiny', 64, 2, 4, field_depth=2),
        Shape('tiny-text', 64, 2, 4, field_depth=2, text=True, text_dim=16, text_length=8, text_depth=1),
    )
}


def shape_of(args: Any, name: str | None = None) -> Shape:
    """The shape asked for, with fewer blocks if ``--depth`` says so."""
    shape = SHAPES[name or args.model]
    return replace(shape, depth=args.depth) if args.depth else shape


class Published(nn.Module):
    """A published network under our calling convention, imported from a checkout of the release."""

    def __init__(self, checkout: str, shape: Shape):
        super().__init__()
        if not shape.field_depth:
            raise ValueError(f'{shape.name}: the release has no network with a linear head to compare with')
        kind = 'c2i' if not shape.text else 't2i_heavydecoder' if shape.any_size else 't2i'
        if not (Path(checkout) / f'src/models/transformer/pixnerd_{kind}.py').is_file():
            raise ValueError(f'--reference {checkout}: no checkout of the published code (src/models/transformer)')
        if checkout not in sys.path:
            sys.path.insert(0, checkout)
        module = importlib.import_module(f'src.models.transformer.pixnerd_{kind}')
        common = dict(in_channels=3, patch_size=16, num_groups=shape.num_heads, hidden_size=shape.dim)
        if shape.text:
            self.net = module.PixNerDiT(
                **common,
                decoder_hidden_size=64,
                num_encoder_blocks=shape.depth,
                num_decoder_blocks=shape.field_depth,
                num_text_blocks=shape.text_depth,
                txt_embed_dim=shape.text_dim,
                txt_max_length=shape.text_length,
            )
        else:
            self.net = module.PixNerDiT(
                **common,
                hidden_size_x=64,
                nerf_mlpratio=2,
                num_cond_blocks=shape.depth,
                num_blocks=shape.depth + shape.field_depth,
                num_classes=NUM_CLASSES,
            )
        # It starts at zero velocity, which would hide everything else.
        nn.init.normal_(self.net.final_layer.linear.weight, std=0.2)
        self.patch_size = 16

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, **unused: Any) -> Tensor:
        return self.net(x, t, cond)

    def encode(
        self, x: Tensor, t: Tensor, cond: Tensor, *, feature_layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As ours for the loss, but the published forward is one piece: for the patch vectors stands the velocity."""
        if feature_layer is None:
            return self.net(x, t, cond), None
        features: list[Tensor] = []
        block = self.net.blocks[feature_layer - 1]
        hook = block.register_forward_hook(lambda module, inputs, output: features.append(output))
        v = self.net(x, t, cond)
        hook.remove()
        return v, features[0]

    def decode(self, s: Tensor, *unused: Any) -> Tensor:
        return s

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return x.shape[2] // self.patch_size, x.shape[3] // self.patch_size


def build(shape: Shape, device: str, reference: str | None = None) -> tuple[nn.Module, Published | None]:
    """Our network in float32, and the published one beside it on the same weights if its checkout is given."""
    published = Published(reference, shape) if reference else None
    if published is None:
        net = MODELS.build(shape.config())
        nn.init.normal_(net.head.proj.weight, std=0.2)
        return net.to(device), None
    with torch.device('meta'):
        net = MODELS.build(shape.config())
    weights = {name: tensor.clone() for name, tensor in from_published(published.net.state_dict()).items()}
    net.load_state_dict(weights, assign=True)
    return net.to(device), published.to(device)


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())

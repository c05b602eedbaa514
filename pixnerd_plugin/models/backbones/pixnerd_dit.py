"""The diffusion transformer of PixNerd, for class and text conditions (paper Sec. 3.2; layout as released)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ...registry import MODELS, build
from ..heads.patches import from_patches, to_patches
from ..layers import operations as own_operations
from ..layers.attention import AttentionFunction, Text, scaled_dot_product_attention
from ..layers.block import TransformerBlock
from ..layers.embeddings import TextEmbedding, TimeEmbedding
from ..layers.rotary import POSITION_RULES, rotary_table, rotate, token_positions
from .conditioning import Conditioning


@MODELS.register_module()
class PixNerdDiT(nn.Module):
    """Velocity ``v(x, t, cond)`` of a noisy picture: a transformer over large patches and a head per pixel.

    The condition is a class when ``num_classes`` is given, and a text when ``text_dim`` is.

    Args:
        dim: width ``D`` of the tokens.
        depth: number of transformer blocks.
        num_heads: attention heads.
        patch_size: side ``P`` of a patch.
        in_channels: channels ``C`` of the picture.
        num_classes: number of classes; the null class is ``num_classes``, the last row of the table.
        text_dim: width of the text embeddings; the null text is the embedding of the empty prompt.
        text_length: most text tokens the positions were learned for.
        text_depth: blocks that refine the text before the picture attends to it.
        mlp_hidden: hidden width of the SwiGLU; by default ``floor(8 D / 3)`` for classes and ``4 D`` for text.
        position_rule: rule of the token positions (see :func:`~..layers.rotary.token_positions`); by default that of
            the published weights: ``'fixed_span'`` for classes, ``'swapped_grid'`` for text.
        head: the head, built or as a dict; ``dim``, ``patch_size`` and ``in_channels`` are filled in.
        operations: namespace of the layers with weights: ``Linear``, ``RMSNorm``, ``Embedding``; by default torch's,
            with a faster ``RMSNorm``.
        attention: attention function; torch's own by default.
        checkpoint: recompute each block's activations in the backward pass instead of keeping them.
        factory: ``dtype`` and ``device`` of the weights.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """

    # ModuleLists of TransformerBlock, which a type checker cannot say.
    text_blocks: Any
    blocks: Any

    def __init__(
        self,
        dim: int = 1152,
        depth: int = 26,
        num_heads: int = 16,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int | None = None,
        text_dim: int | None = None,
        text_length: int = 128,
        text_depth: int = 4,
        mlp_hidden: int | None = None,
        position_rule: str | None = None,
        head: dict[str, Any] | nn.Module | None = None,
        operations: Any = own_operations,
        attention: AttentionFunction = scaled_dot_product_attention,
        checkpoint: bool = False,
        **factory: Any,
    ):
        super().__init__()
        if (num_classes is None) == (text_dim is None):
            raise ValueError(
                f'PixNerdDiT takes num_classes or text_dim, one of the two; got num_classes={num_classes}, '
                f'text_dim={text_dim}'
            )
        if dim % num_heads or (dim // num_heads) % 4:
            raise ValueError(
                f'PixNerdDiT: dim={dim} over num_heads={num_heads} must give heads whose width is a multiple of 4, '
                'for the two-dimensional rotary embedding'
            )
        is_text = text_dim is not None
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.text_dim = text_dim
        self.text_length = text_length if is_text else 0
        self.text_depth = text_depth if is_text else 0
        self.mlp_hidden = mlp_hidden or (4 * dim if is_text else 8 * dim // 3)
        self.position_rule = position_rule or ('swapped_grid' if is_text else 'fixed_span')
        if self.position_rule not in POSITION_RULES:
            raise ValueError(
                f'PixNerdDiT: position_rule={position_rule!r} is not known; use one of {", ".join(POSITION_RULES)}'
            )
        self.checkpoint = checkpoint

        layers = dict(operations=operations, **factory)
        self.patch_embed = operations.Linear(in_channels * patch_size**2, dim, **factory)
        self.time_embed = TimeEmbedding(dim, **layers)
        if text_dim is not None:
            self.text_embed = TextEmbedding(text_dim, dim, text_length, **layers)
        elif num_classes is not None:
            self.label_embed = operations.Embedding(num_classes + 1, dim, **factory)
        block = partial(TransformerBlock, dim, num_heads, self.mlp_hidden, attention=attention, **layers)
        self.text_blocks = nn.ModuleList(block(joint=False) for _ in range(self.text_depth))
        self.blocks = nn.ModuleList(block(joint=is_text) for _ in range(depth))
        head = head or dict(type='NeuralFieldHead')
        self.head = build(MODELS, head, dim=dim, patch_size=patch_size, in_channels=in_channels, **layers)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as the release does: Xavier patches, small embeddings, the head at zero velocity."""
        if self.patch_embed.weight is None or self.patch_embed.weight.is_meta:
            return  # the host (ComfyUI) fills the weights in later
        nn.init.xavier_uniform_(self.patch_embed.weight)
        nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.time_embed.fc1.weight, std=0.02)
        nn.init.normal_(self.time_embed.fc2.weight, std=0.02)
        if self.text_dim is None:
            nn.init.normal_(self.label_embed.weight, std=0.02)
        else:
            nn.init.normal_(self.text_embed.positions, std=0.02)
        if hasattr(self.head, 'init_weights'):
            self.head.init_weights()

    def architecture(self) -> dict[str, Any]:
        """The registry dict that rebuilds this network: plain numbers and strings, as kept in checkpoints."""
        names = ['dim', 'depth', 'num_heads', 'patch_size', 'in_channels', 'mlp_hidden', 'position_rule']
        names += ['num_classes'] if self.text_dim is None else ['text_dim', 'text_length', 'text_depth']
        head = self.head.architecture() if hasattr(self.head, 'architecture') else {'type': type(self.head).__name__}
        return {'type': type(self).__name__, **{name: getattr(self, name) for name in names}, 'head': head}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor,
        token_grid: tuple[int, int] | None = None,
        *,
        pixels: Tensor | None = None,
        positions: tuple[Tensor, Tensor] | None = None,
        feature_layer: int | None = None,
        return_tokens: bool = False,
        field_chunk: int | None = None,
        conditioning: Conditioning | None = None,
    ) -> Any:
        """Return the velocity, shaped like the pixels that the head evaluates.

        Args:
            x: noisy picture ``(B, C, H, W)``; it sets dtype and device of the computation.
            t: time ``(B,)``, 0 at noise and 1 at the image.
            cond: class ids ``(B,)``, or text embeddings ``(B, N, text_dim)``.
            token_grid: ``(rows, columns)`` of tokens for a picture of another size: the transformer reads the picture
                resampled to ``rows P x columns P``, the head evaluates every pixel of ``x`` (paper Fig. 4). By default
                one token for each ``P x P`` pixels.
            pixels: noisy picture ``(B, C, rows h, columns w)`` for the head, if not ``x``.
            positions: row positions ``(h,)`` and column positions ``(w,)`` of those pixels in each patch.
            feature_layer: also return the tokens ``(B, L, D)`` after this block, counted from 1.
            return_tokens: also return the patch vectors ``s (B, L, D)``, all that the head sees of the transformer.
            field_chunk: most pixels the head evaluates at once.
            conditioning: what :meth:`condition` gave for ``t`` and ``cond``, if it was computed before.

        Returns:
            ``v``, or ``(v, features)``, or ``(v, s)``.

        Raises:
            ValueError: if a shape does not fit; the message names it.
        """
        grid = self._check(x, cond, token_grid, feature_layer)
        if conditioning is None:
            time, modulations, texts = self._condition(t, cond, x.dtype)
        else:
            time, modulations = conditioning.time, list(conditioning.modulations.unbind(1))
            texts = (
                [None] * self.depth
                if conditioning.text is None
                else [kv.unbind(1) for kv in conditioning.text.unbind(1)]
            )
        tokens = _resample(x, grid, self.patch_size)
        s, features = self._tokens(tokens, time, modulations, texts, grid, feature_layer)
        v = self.decode(s, x if pixels is None else pixels, grid, positions, field_chunk)
        if return_tokens:
            return v, s
        return v if feature_layer is None else (v, features)

    def decode(
        self,
        s: Tensor,
        pixels: Tensor,
        token_grid: tuple[int, int],
        positions: tuple[Tensor, Tensor] | None = None,
        field_chunk: int | None = None,
    ) -> Tensor:
        """Evaluate the head alone: patch vectors ``s (B, L, D)`` and noisy ``pixels (B, C, H, W)`` to the velocity."""
        velocity = self.head(s, to_patches(pixels, token_grid), positions, field_chunk)
        return from_patches(velocity, token_grid)

    @torch.no_grad()
    def condition(self, t: Tensor, cond: Tensor, dtype: torch.dtype) -> Conditioning:
        """Compute ahead what :meth:`forward` needs of ``R`` pairs of a time and a condition, for many steps at once.

        Args:
            t, cond: as in :meth:`forward`, ``(R,)`` and ``(R, ...)``.
            dtype: dtype of the pictures to come.
        """
        time, modulations, texts = self._condition(t, cond, dtype)
        if self.text_dim is None:
            return Conditioning(time, torch.stack(modulations, dim=1), None)
        keys_values = [
            torch.stack(block.attn.text_keys_values(text), dim=1)
            for block, text in zip(self.blocks, texts, strict=True)
        ]
        return Conditioning(time, torch.stack(modulations, dim=1), torch.stack(keys_values, dim=1))

    def _condition(self, t: Tensor, cond: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Any]]:
        """Embedded time ``(B, D)``, and for each block its modulation ``(B, 6, D)`` and the refined text or None."""
        time = self.time_embed(t, dtype)
        text = None
        if self.text_dim is None:
            c = F.silu(time + self.label_embed(cond).to(time.dtype))
        else:
            c = F.silu(time)
            text = self.text_embed(cond.to(dtype))  # (B, N, D)
            for block in self.text_blocks:
                text = self._run(block, text, block.modulate(c))
        return time, [block.modulate(c) for block in self.blocks], [text] * self.depth

    def _tokens(
        self,
        x: Tensor,
        time: Tensor,
        modulations: Sequence[Tensor],
        texts: Sequence[Text | None],
        grid: tuple[int, int],
        feature_layer: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The transformer: ``x (B, C, rows P, columns P)`` to ``s (B, L, D)``, and the features of one layer."""
        rotary = rotary_table(*token_positions(grid, self.position_rule, x.device), self.dim // self.num_heads)
        # A patch is flattened channel-major.
        h = self.patch_embed(to_patches(x, grid).movedim(-1, 2).flatten(2))  # (B, L, D)
        features = None
        for index, (block, modulation, text) in enumerate(zip(self.blocks, modulations, texts, strict=True), start=1):
            h = self._run(block, h, modulation, partial(rotate, table=rotary), text)
            if index == feature_layer:
                features = h
        return F.silu(time.unsqueeze(1) + h), features

    def _run(self, block: Any, h: Tensor, *args: Any) -> Tensor:
        if self.checkpoint and torch.is_grad_enabled():
            return recompute(block, h, *args, use_reentrant=False)
        return block(h, *args)

    def _check(
        self, x: Tensor, cond: Tensor, token_grid: tuple[int, int] | None, feature_layer: int | None
    ) -> tuple[int, int]:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'x must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}')
        height, width = x.shape[2:]
        if token_grid is None:
            if height % self.patch_size or width % self.patch_size:
                raise ValueError(
                    f'the picture is {height}x{width}, and its sides must be multiples of patch_size={self.patch_size}'
                )
            token_grid = (height // self.patch_size, width // self.patch_size)
        elif height % token_grid[0] or width % token_grid[1]:
            raise ValueError(
                f'the picture is {height}x{width}, and its sides must be multiples of the token grid '
                f'{token_grid[0]}x{token_grid[1]}'
            )
        if self.text_dim is None and cond.shape != x.shape[:1]:
            raise ValueError(
                f'cond must be class ids ({len(x)},) for this class-conditional model, got {tuple(cond.shape)}'
            )
        if self.text_dim is not None:
            fits = cond.ndim == 3 and len(cond) == len(x) and cond.shape[2] == self.text_dim
            if not fits or cond.shape[1] > self.text_length:
                raise ValueError(
                    f'cond must be text embeddings ({len(x)}, at most {self.text_length}, {self.text_dim}), '
                    f'got {tuple(cond.shape)}'
                )
        if feature_layer is not None and not 1 <= feature_layer <= self.depth:
            raise ValueError(f'feature_layer={feature_layer} must be from 1 to depth={self.depth}')
        return token_grid


def _resample(x: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The picture at the size the transformer reads; nearest neighbour, so that noise keeps its variance."""
    size = (grid[0] * patch_size, grid[1] * patch_size)
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode='nearest')

"""The diffusion transformer of PixNerd, for class and text conditions (paper Sec. 3.2; layout as released)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from pixnerd_plugin.formats.parts import describe_part
from pixnerd_plugin.formats.schema import integer, one_of
from pixnerd_plugin.functional.patches import grid_of_tokens, resample, to_patches
from pixnerd_plugin.functional.positions import POSITION_RULES, token_positions
from pixnerd_plugin.functional.prediction import PREDICTIONS, to_velocity
from pixnerd_plugin.functional.rotary import rotary_table, rotary_table_of_grid, rotate
from pixnerd_plugin.models.heads.anywhere import head_over
from pixnerd_plugin.models.layers import operations as own_operations
from pixnerd_plugin.models.layers.attention import AttentionFunction, Text, scaled_dot_product_attention
from pixnerd_plugin.models.layers.block import TransformerBlock, join_modulations
from pixnerd_plugin.models.layers.embeddings import TextEmbedding, TimeEmbedding
from pixnerd_plugin.models.layers.packing import pack, unpack
from pixnerd_plugin.registry import MODELS, build

from .conditioning import Conditioning, check_condition
from .hooks import Hooks


@MODELS.register_module()
class PixNerdDiT(nn.Module):
    """Velocity ``v(x, t, cond)`` of a noisy picture: a transformer over large patches, and a head for their pixels.

    The condition is a class if ``num_classes`` is given, and a text if ``text_dim`` is.

    Args:
        dim: width ``D`` of the tokens.
        depth: number of transformer blocks.
        num_heads: attention heads.
        patch_size: side ``P`` of a patch.
        in_channels: channels ``C`` of the picture.
        num_classes: number of classes; the null class is ``num_classes``, the last row of the table.
        text_dim: width of the text embeddings; the null text is the embedding of the empty prompt.
        text_length: maximum number of text tokens, the number of learned positions.
        text_depth: number of blocks that refine the text before the picture attends to it.
        mlp_hidden: hidden width of the SwiGLU; by default ``floor(8 D / 3)`` for classes and ``4 D`` for text.
        position_rule: rule of the token positions (see :func:`~pixnerd_plugin.functional.positions.token_positions`);
            by default that of the published weights: ``'fixed_span'`` for classes, ``'swapped_grid'`` for text.
        step_end: also take the time ``r`` at which a step from ``t`` ends; the network then gives the mean velocity
            over the step, and that at ``t`` for ``r = t``. Its embedding begins at zero.
        prediction: what the head gives, ``'velocity'`` or ``'image'``; an image is turned into the velocity (see
            :mod:`~pixnerd_plugin.functional.prediction`), so that losses and samplers see velocities always.
        head: the head, built or as a dict; ``dim``, ``patch_size`` and ``in_channels`` are filled in.
        operations: namespace of the layers with weights: ``Linear``, ``RMSNorm``, ``Embedding``; by default torch's,
            with a faster ``RMSNorm``.
        attention: attention function; torch's own by default.
        checkpoint: recompute each block's activations in the backward pass instead of keeping them.
        factory: ``dtype`` and ``device`` of the weights.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """

    role = 'backbone'
    stored = dict(
        dim=integer(1, 2**16),
        depth=integer(1, 512),
        num_heads=integer(1, 2**10),
        patch_size=integer(1, 2**10),
        in_channels=integer(1, 2**10),
        mlp_hidden=integer(1, 2**20),
        position_rule=one_of(*POSITION_RULES),
        prediction=one_of(*PREDICTIONS),
        num_classes=integer(1, 2**24),
        text_dim=integer(1, 2**20),
        text_length=integer(1, 2**20),
        text_depth=integer(0, 512),
        step_end=one_of(True, False),
    )

    # Each is a ModuleList of TransformerBlock, which a type checker cannot express.
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
        step_end: bool = False,
        prediction: str = 'velocity',
        head: dict[str, Any] | nn.Module | None = None,
        operations: Any = own_operations,
        attention: AttentionFunction = scaled_dot_product_attention,
        checkpoint: bool = False,
        **factory: Any,
    ):
        super().__init__()
        if (num_classes is None) == (text_dim is None):
            raise ValueError(
                f'PixNerdDiT takes either num_classes or text_dim; got num_classes={num_classes}, text_dim={text_dim}'
            )
        if dim % num_heads or (dim // num_heads) % 4:
            raise ValueError(
                f'PixNerdDiT: dim={dim} divided by num_heads={num_heads} must be a multiple of 4, for the '
                'two-dimensional rotary embedding'
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
        self.step_end = step_end
        if prediction not in PREDICTIONS:
            raise ValueError(f'PixNerdDiT: prediction={prediction!r} is not known; use one of {", ".join(PREDICTIONS)}')
        self.prediction = prediction
        self.checkpoint = checkpoint

        layers = dict(operations=operations, **factory)
        self.patch_embed = operations.Linear(in_channels * patch_size**2, dim, **factory)
        self.time_embed = TimeEmbedding(dim, **layers)
        if step_end:
            self.step_embed = TimeEmbedding(dim, **layers)
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
        if self.step_end:
            # A network that is trained already gives what it gave without.
            nn.init.normal_(self.step_embed.fc1.weight, std=0.02)
            nn.init.zeros_(self.step_embed.fc2.weight)
            nn.init.zeros_(self.step_embed.fc2.bias)
        if self.text_dim is None:
            nn.init.normal_(self.label_embed.weight, std=0.02)
        else:
            nn.init.normal_(self.text_embed.positions, std=0.02)
        if hasattr(self.head, 'init_weights'):
            self.head.init_weights()

    def architecture(self) -> dict[str, Any]:
        """The registry dict that rebuilds this network, of plain numbers and strings, as stored in checkpoints."""
        unused = {'text_dim', 'text_length', 'text_depth'} if self.text_dim is None else {'num_classes'}
        # Networks without, which earlier versions read too, do not mention it.
        unused |= set() if self.step_end else {'step_end'}
        own = {name: value for name, value in describe_part(self).items() if name not in unused}
        head = self.head.architecture() if hasattr(self.head, 'architecture') else {'type': type(self.head).__name__}
        return {**own, 'head': head}

    def encode(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor,
        token_grid: tuple[int, int] | None = None,
        *,
        r: Tensor | None = None,
        feature_layer: int | None = None,
        conditioning: Conditioning | None = None,
        hooks: Hooks | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the transformer: a noisy picture to patch vectors, which are all that the head sees of it.

        Args:
            x: noisy picture ``(B, C, H, W)``; its dtype and device are those of the computation.
            t: time ``(B,)``, 0 at noise and 1 at the image.
            cond: class ids ``(B,)``; or shares of the classes ``(B, num_classes)``, where the null class gets what is
                missing to 1; or text embeddings ``(B, N, text_dim)``.
            token_grid: ``(rows, columns)`` of tokens, for pictures of another size than the trained one: the
                transformer reads the picture resampled to ``rows P x columns P`` (paper Fig. 4). By default there is
                one token for each ``P x P`` pixels.
            r: time ``(B,)`` at which the step ends, for a network with ``step_end``; ``t`` by default.
            feature_layer: also return the tokens ``(B, L, D)`` after this block, counted from 1.
            conditioning: result of :meth:`condition` for ``t`` and ``cond``, if it was computed ahead.
            hooks: lets a host act on this call.

        Returns:
            The patch vectors ``s (B, L, D)``, and the features, or None without ``feature_layer``.

        Raises:
            ValueError: if a shape, the grid, a class id or ``r`` is wrong; the message names it.
        """
        grid = self.grid_of(x, token_grid)
        check_condition(cond, len(x), self.num_classes, self.text_dim, self.text_length)
        if feature_layer is not None and not 1 <= feature_layer <= self.depth:
            raise ValueError(f'feature_layer={feature_layer} must be from 1 to depth={self.depth}')
        if conditioning is None:
            e_t, modulations, texts = self._condition(t, cond, x.dtype, r, hooks)
        else:
            e_t, modulations = conditioning.e_t, conditioning.modulations
            texts = (
                [None] * self.depth
                if conditioning.text is None
                else [kv.unbind(1) for kv in conditioning.text.unbind(1)]
            )
        tokens = resample(x, grid, self.patch_size)
        return self._tokens(tokens, e_t, modulations, texts, grid, feature_layer, hooks)

    def decode(
        self,
        s: Tensor,
        pixels: Tensor,
        token_grid: tuple[int, int],
        positions: tuple[Tensor, Tensor] | None = None,
        field_chunk: int | None = None,
        blend: float = 0.0,
        t: Tensor | None = None,
    ) -> Tensor:
        """Run the head: patch vectors and noisy pixels to the velocity of those pixels.

        Args:
            s: patch vectors ``(B, rows * columns, D)`` from :meth:`encode`.
            pixels: noisy pixels ``(B, C, rows h, columns w)``, ``h x w`` in each patch.
            token_grid: ``(rows, columns)`` of patches.
            positions: row positions ``(h,)`` and column positions ``(w,)`` of the pixels in each patch; by default
                they cover the whole patch.
            field_chunk: maximum number of pixels that the head evaluates at once.
            blend: width in base pixels over which the fields on both sides of a border are averaged, from 0 (published,
                hard borders) to 1 (see :mod:`~pixnerd_plugin.functional.blending`). Not with ``positions``.
            t: times ``(B,)`` of the pixels; needed if the network predicts the image.

        Returns:
            The velocity, shaped like ``pixels``.

        Raises:
            ValueError: if the pixels are not a whole number of patches, ``blend`` is out of range, or ``t`` is missing.
        """
        self.grid_of(pixels, token_grid)
        if self.prediction != 'velocity' and t is None:
            raise ValueError(f'decode needs t, the times of the pixels, because prediction={self.prediction!r}')
        output = head_over(self.head, s, pixels, token_grid, positions, field_chunk, blend)
        return output if t is None else to_velocity(output, pixels, t, self.prediction)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor,
        token_grid: tuple[int, int] | None = None,
        *,
        r: Tensor | None = None,
        field_chunk: int | None = None,
        conditioning: Conditioning | None = None,
        blend: float = 0.0,
    ) -> Tensor:
        """Return the velocity of ``x``: :meth:`encode`, then :meth:`decode` with ``x`` as pixels; same arguments."""
        s, _ = self.encode(x, t, cond, token_grid, r=r, conditioning=conditioning)
        return self.decode(s, x, self.grid_of(x, token_grid), field_chunk=field_chunk, blend=blend, t=t)

    def pack(self) -> int:
        """Pack the weights for drawing on a CPU, in place (see :mod:`~pixnerd_plugin.models.layers.packing`).

        Training, moving, copying or saving the network undoes it. Returns the number of packed layers: none of a
        compiled network, whose weights the compiler lays out.
        """
        return 0 if self._is_compiled() else pack(self)

    def _is_compiled(self) -> bool:
        return 'encode' in vars(self) or any(part._compiled_call_impl is not None for part in (*self.blocks, self.head))

    def compile(self, *args: Any, regional: bool = False, **kwargs: Any) -> None:
        """Compile :meth:`encode` and :meth:`decode` in place, with the arguments of ``torch.compile``.

        All calls go through these two, including :meth:`forward`. Parameter names do not change.

        Args:
            regional: compile a block and the head on their own. All blocks share one graph, which is compiled in a
                fraction of the time, and what lies between them stays eager.
        """
        unpack(self)
        if regional:
            for part in (*self.text_blocks, *self.blocks, self.head):
                part.compile(*args, **kwargs)
            return
        self.encode = torch.compile(self.encode, *args, **kwargs)  # type: ignore[method-assign]
        self.decode = torch.compile(self.decode, *args, **kwargs)  # type: ignore[method-assign]

    def grid_of(self, x: Tensor, token_grid: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of tokens for a picture ``x (B, C, H, W)``: ``token_grid`` if given, else one per patch.

        Raises:
            ValueError: if the sides of the picture are not multiples of the patch or the grid; the message names them.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'x must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}')
        return grid_of_tokens((x.shape[2], x.shape[3]), self.patch_size, token_grid)

    @torch.no_grad()
    def condition(self, t: Tensor, cond: Tensor, dtype: torch.dtype, r: Tensor | None = None) -> Conditioning:
        """Compute ahead what :meth:`encode` needs for ``R`` pairs of a time and a condition, such as many steps.

        Args:
            t, cond: as in :meth:`encode`, ``(R,)`` and ``(R, ...)``.
            dtype: dtype of the pictures that will be encoded.
            r: as in :meth:`encode`.
        """
        check_condition(cond, len(t), self.num_classes, self.text_dim, self.text_length)
        e_t, modulations, texts = self._condition(t, cond, dtype, r)
        if self.text_dim is None:
            return Conditioning(e_t, modulations, None)
        keys_values = [
            torch.stack(block.attn.text_keys_values(text), dim=1)
            for block, text in zip(self.blocks, texts, strict=True)
        ]
        return Conditioning(e_t, modulations, torch.stack(keys_values, dim=1))

    def _condition(
        self, t: Tensor, cond: Tensor, dtype: torch.dtype, r: Tensor | None = None, hooks: Hooks | None = None
    ) -> tuple[Tensor, Tensor, list[Any]]:
        """Embedded time ``(B, D)``, modulations ``(B, depth, 6, D)``, and for each block the refined text or None."""
        e_t = self.time_embed(t, dtype)
        if self.step_end:
            e_t = e_t + self.step_embed((t if r is None else r) - t, dtype)
        elif r is not None:
            raise ValueError('this network gives velocities at a time and takes no r; build it with step_end=True')
        text = None
        if self.text_dim is None:
            c = F.silu(e_t + self._class_embedding(cond).to(e_t.dtype))
        else:
            c = F.silu(e_t)
            text = self.text_embed(cond.to(dtype))  # (B, N, D)
            if self.text_depth:
                modulations = join_modulations(block.modulate(c) for block in self.text_blocks)
                for block, modulation in zip(self.text_blocks, modulations.unbind(1), strict=True):
                    text = self._run(hooks, block, None, text, modulation)
        return e_t, join_modulations(block.modulate(c) for block in self.blocks), [text] * self.depth

    def _class_embedding(self, cond: Tensor) -> Tensor:
        """Class ids ``(B,)``, or shares ``(B, num_classes)``, to ``(B, D)``."""
        if cond.ndim == 1:
            return self.label_embed(cond)
        table = self.label_embed(torch.arange(cond.shape[1] + 1, device=cond.device))
        return torch.cat((cond, 1 - cond.sum(1, keepdim=True)), dim=1).to(table.dtype) @ table

    def _tokens(
        self,
        x: Tensor,
        e_t: Tensor,
        modulations: Tensor,
        texts: Sequence[Text | None],
        grid: tuple[int, int],
        feature_layer: int | None,
        hooks: Hooks | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The transformer: ``x (B, C, rows P, columns P)`` to ``s (B, L, D)``, and the features of one layer."""
        rotary = self._rotary_table(grid, x.device, hooks)
        # A patch is flattened channel-major.
        h = self.patch_embed(to_patches(x, grid).movedim(-1, 2).flatten(2))  # (B, L, D)
        features = None
        layers = zip(self.blocks, modulations.unbind(1), texts, strict=True)
        for index, (block, modulation, text) in enumerate(layers, start=1):
            h = self._run(hooks, block, index - 1, h, modulation, partial(rotate, table=rotary), text)
            if index == feature_layer:
                features = h
        return F.silu(e_t.unsqueeze(1) + h), features

    def _rotary_table(self, grid: tuple[int, int], device: torch.device, hooks: Hooks | None) -> Tensor:
        head_dim = self.dim // self.num_heads
        if hooks is not None:
            own = token_positions(grid, self.position_rule, device)
            moved = hooks.positions(*own)
            if moved[0] is not own[0] or moved[1] is not own[1]:
                return rotary_table(*moved, head_dim)
        return rotary_table_of_grid(grid, self.position_rule, head_dim, device)

    def _run(self, hooks: Hooks | None, block: Any, index: int | None, h: Tensor, *args: Any) -> Tensor:
        if hooks is not None:
            return hooks.run(block, index, h, *args)
        if self.checkpoint and torch.is_grad_enabled():
            return recompute(block, h, *args, use_reentrant=False)
        return block(h, *args)

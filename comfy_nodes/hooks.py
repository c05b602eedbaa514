"""How ComfyUI's patches of a model act in the transformer: its attention, its blocks, its token positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from pixnerd_plugin.models.backbones.hooks import Hooks

PATCHES = ('attn1_patch', 'attn1_output_patch')
"""Lists of patches that have a place here, as in core's flux."""


def refuse_foreign_patches(options: dict[str, Any]) -> None:
    """ValueError if a node patches what this network does not have; without it the node would do nothing, unsaid."""
    foreign = [name for name in options.get('patches', {}) if name not in PATCHES]
    foreign += [name for name in options.get('patches_replace', {}) if name != 'dit']
    if foreign:
        raise ValueError(
            f'a node before the sampler patches {foreign[0]!r}, which PixNerd does not have (FreeU, HyperTile, PAG and '
            'SAG of UNets, GLIGEN and the like): take it out.'
        )


class PatchHooks(Hooks):
    """The part that ``transformer_options`` take in one call of the network."""

    def __init__(self, options: dict[str, Any], num_blocks: int):
        self.options = {**options, 'total_blocks': num_blocks, 'block_type': 'double'}
        self.replaced = options.get('patches_replace', {}).get('dit', {})

    def positions(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        rope = self.options.get('rope_options')
        if not rope:
            return x, y
        return (
            x * rope.get('scale_x', 1.0) + rope.get('shift_x', 0.0),
            y * rope.get('scale_y', 1.0) + rope.get('shift_y', 0.0),
        )

    def run(
        self,
        block: Any,
        index: int | None,
        h: Tensor,
        modulation: Tensor,
        rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        if index is None:
            return block(h, modulation, rotate, text, lambda q, k, v: attend(q, k, v, self.options))
        options = {**self.options, 'block_index': index}

        def original(args: dict[str, Any]) -> dict[str, Any]:
            used = args.get('transformer_options', options)

            def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return attend_patched(q, k, v, used)

            return {'img': block(args['img'], args['vec'], args['pe'], args['txt'], attention), 'txt': args['txt']}

        args = dict(img=h, txt=text, vec=modulation, pe=rotate, attn_mask=None, transformer_options=options)
        replace = self.replaced.get(('double_block', index))
        return (original(args) if replace is None else replace(args, {'original_block': original}))['img']


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], mask: Tensor | None = None) -> Tensor:
    """Core's attention on ``(B, heads, tokens, width)``, which an ``optimized_attention_override`` may replace."""
    return optimized_attention(
        q, k, v, q.shape[1], mask=mask, skip_reshape=True, skip_output_reshape=True, transformer_options=options
    )


def attend_patched(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """:func:`attend` between the patches of what goes in and of what comes out."""
    patches = options.get('patches', {})
    # The picture's tokens stand first, a text's keys and values after them.
    extra = {**options, 'img_slice': [0, q.shape[2]], 'n_heads': q.shape[1], 'dim_head': q.shape[3]}
    mask = None
    for patch in patches.get('attn1_patch', ()):
        out = patch(q, k, v, pe=None, attn_mask=mask, extra_options=extra)
        q, k, v, mask = out.get('q', q), out.get('k', k), out.get('v', v), out.get('attn_mask', mask)
    result = attend(q, k, v, options, mask)
    if 'attn1_output_patch' not in patches:
        return result
    tokens = result.transpose(1, 2).flatten(2)
    for patch in patches['attn1_output_patch']:
        tokens = patch(tokens, extra)
    return tokens.unflatten(2, (q.shape[1], -1)).transpose(1, 2)

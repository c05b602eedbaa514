"""The size of the picture, and how the model deals with it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..model import require_pixnerd, with_options
from ..schema import advanced, search_aliases

FIXED, NATIVE = 'fixed tokens', 'native'
MAX_SIDE = 16384


class PixNerdEmptyImage(io.ComfyNode):
    """An empty picture to sample into."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdEmptyImage',
            display_name='PixNerd Empty Image',
            category='PixNerd/latent',
            **search_aliases('pixnerd', 'empty latent', 'size', 'resolution'),
            description='The size of the picture to draw. PixNerd has no latent space: what samplers call latent is '
            'the picture itself.',
            inputs=[
                io.Int.Input(
                    'width',
                    default=512,
                    min=8,
                    max=MAX_SIDE,
                    step=8,
                    tooltip='In pixels. Any size; multiples of 16 fit the patches of the published models exactly.',
                ),
                io.Int.Input(
                    'height',
                    default=512,
                    min=8,
                    max=MAX_SIDE,
                    step=8,
                    tooltip='In pixels. Any size; multiples of 16 fit the patches of the published models exactly.',
                ),
                io.Int.Input('batch_size', default=1, min=1, max=4096, tooltip='How many pictures are drawn at once.'),
            ],
            outputs=[io.Latent.Output(display_name='LATENT', tooltip='For the latent input of a sampler.')],
        )

    @classmethod
    def execute(cls, width: int, height: int, batch_size: int) -> io.NodeOutput:
        device = comfy.model_management.intermediate_device()
        samples = torch.zeros(batch_size, 3, height, width, device=device)
        return io.NodeOutput({'samples': samples, 'downscale_ratio_spacial': 1})


class PixNerdResolution(io.ComfyNode):
    """How a model treats pictures of another size than it was trained on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdResolution',
            display_name='PixNerd Resolution',
            category='PixNerd/model',
            **search_aliases('pixnerd', 'token grid', 'high resolution'),
            description='For pictures of another size than the model was trained on: keep its number of patches and '
            'let the neural field draw each of them finer, or use more patches.',
            inputs=[
                io.Model.Input('model', tooltip='A PixNerd model.'),
                io.Combo.Input(
                    'mode',
                    options=[FIXED, NATIVE],
                    default=FIXED,
                    tooltip='fixed tokens: the patches of base_size, whatever the size and shape of the picture. '
                    'native: one patch for each 16x16 pixels.',
                ),
                io.Int.Input(
                    'base_size',
                    default=512,
                    min=8,
                    max=MAX_SIDE,
                    step=8,
                    tooltip='Side of the pictures the model was trained on, in pixels; used by fixed tokens.',
                ),
                advanced(
                    io.Int.Input(
                        'field_chunk',
                        default=0,
                        min=0,
                        max=2**24,
                        step=1024,
                        tooltip='Most pixels the neural field draws at once. Less takes less memory and more time; 0 '
                        'chooses for you.',
                    )
                ),
                io.Float.Input(
                    'blend',
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip='How far neighbouring patches run into each other, in pixels of base_size; used by fixed '
                    'tokens. 0.5 leaves no seams in larger pictures, 0 has the hard borders of the published rule.',
                ),
            ],
            outputs=[io.Model.Output(display_name='MODEL', tooltip='The model with this setting.')],
        )

    @classmethod
    def execute(cls, model: Any, mode: str, base_size: int, field_chunk: int, blend: float = 0.0) -> io.NodeOutput:
        patch_size = require_pixnerd(model, 'model').model.diffusion_model.patch_size
        if mode == FIXED and base_size % patch_size:
            raise ValueError(f'base_size is {base_size}, which is not a multiple of {patch_size}: the size of a patch.')
        count = base_size // patch_size
        grid, blend = ((count, count), blend) if mode == FIXED else (None, 0.0)
        options = dict(token_grid=grid, field_chunk=field_chunk or None, blend=blend or None)
        return io.NodeOutput(with_options(model, **options))

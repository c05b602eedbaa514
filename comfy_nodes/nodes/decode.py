"""From samples to IMAGE, at their own size or, through the recorded field, at any other."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from pixnerd_plugin.functional.blending import BLEND

from ..field import changes_sampled, decode, field_of, to_image
from ..guards import check_batch_index, check_region
from ..schema import advanced, search_aliases
from .size import MAX_SIDE


def _pixels(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=0, min=0, max=MAX_SIDE * 4, tooltip=tooltip)


class PixNerdDecode(io.ComfyNode):
    """The arbitrary-resolution decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdDecode',
            display_name='PixNerd Decode',
            category='PixNerd/latent',
            **search_aliases('pixnerd', 'vae decode', 'upscale', 'neural field', 'zoom'),
            description='Turns samples into an image: as they are, or at any size and in any region, rendered anew '
            'from the neural field that PixNerd Sampler recorded.',
            inputs=[
                io.Latent.Input('latent', tooltip='From PixNerd Sampler; for other sizes with record_field on.'),
                _pixels('width', 'Width of the whole picture; 0: as sampled, or in proportion to the height.'),
                _pixels('height', 'Height of the whole picture; 0: as sampled, or in proportion to the width.'),
                _pixels('region_x', 'Left edge of the region to render, in pixels of the whole picture.'),
                _pixels('region_y', 'Top edge of the region to render, in pixels of the whole picture.'),
                _pixels('region_width', 'Width of the region; 0: up to the right edge.'),
                _pixels('region_height', 'Height of the region; 0: down to the bottom edge.'),
                io.Float.Input(
                    'grain',
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip='Share of the noise that is new in every pixel of a larger picture: more gives it texture, '
                    '0 keeps it smooth.',
                ),
                advanced(io.Int.Input('grain_seed', default=0, min=0, max=2**32 - 1, tooltip='Seed of the grain.')),
                advanced(
                    io.Int.Input(
                        'field_chunk',
                        default=0,
                        min=0,
                        max=2**24,
                        step=1024,
                        tooltip='Most pixels rendered at once. Less takes less memory and more time; 0 chooses for '
                        'you.',
                    )
                ),
                advanced(
                    io.Int.Input(
                        'batch_index',
                        default=-1,
                        min=-1,
                        max=4095,
                        optional=True,
                        tooltip='Which picture of the batch, counted from 0; -1: all of them.',
                    )
                ),
                io.Float.Input(
                    'blend',
                    default=BLEND,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip='How far neighbouring patches run into each other in a larger picture, in pixels of the '
                    'sampled one: 0.5 leaves no seams, 0 has the hard borders of the published rule.',
                ),
            ],
            outputs=[io.Image.Output(display_name='IMAGE', tooltip='The picture.')],
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        width: int,
        height: int,
        region_x: int,
        region_y: int,
        region_width: int,
        region_height: int,
        grain: float,
        grain_seed: int,
        field_chunk: int,
        batch_index: int = -1,
        blend: float = BLEND,
    ) -> io.NodeOutput:
        check_batch_index(len(latent['samples']), batch_index)
        picture = None if batch_index < 0 else batch_index
        sampled = tuple(latent['samples'].shape[2:])
        size = _whole_size(sampled, height, width)
        bottom = region_y + region_height if region_height else size[0]
        right = region_x + region_width if region_width else size[1]
        region = (region_y, region_x, bottom, right)
        check_region(size, region)
        is_asked = bool(width or height) and changes_sampled(latent, blend)
        if size == sampled and grain == 0 and not is_asked:
            samples = latent['samples'] if picture is None else latent['samples'][picture : picture + 1]
            return io.NodeOutput(to_image(samples[:, :, region_y:bottom, region_x:right]))

        field = field_of(latent, picture)
        comfy.model_management.load_models_gpu([field.model])
        core = field.model.model
        progress = comfy.utils.ProgressBar(1)

        def after_chunk(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update_absolute(done, total)

        pixels = decode(
            field,
            size,
            region,
            grain,
            grain_seed,
            blend,
            field.model.load_device,
            core.manual_cast_dtype or core.get_dtype(),
            field_chunk or None,
            after_chunk,
        )
        return io.NodeOutput(to_image(pixels))


def _whole_size(sampled: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Height and width of the whole picture; a side of 0 follows the other."""
    if not height and not width:
        return sampled
    height = height or max(1, round(width * sampled[0] / sampled[1]))
    return height, width or max(1, round(height * sampled[1] / sampled[0]))

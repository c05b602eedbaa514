"""A sampling run's field, recorded in ComfyUI and decoded at any size. It rides in the LATENT beside the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.sampling import AdamsFlowSampler, FieldTrajectory

FIELD = 'pixnerd_field'
"""Key of a LATENT with a :class:`RecordedField`."""

CONNECT = 'connect the LATENT of a PixNerd Sampler with record_field on'


class RecordedField(NamedTuple):
    """What decoding needs of a run.

    Args:
        model: the MODEL it was run with, LoRAs included.
        samples: its result, to tell whether the LATENT was changed since.
        noise: its base noise ``(B, 3, H, W)``.
        sampler: the solver, as the core's.
        token_grid: rows and columns of patches.
        tokens: patch vectors of each step, ``(branches, B, L, D)`` bfloat16, unconditional first.
    """

    model: Any
    samples: Tensor
    noise: Tensor
    sampler: AdamsFlowSampler
    token_grid: tuple[int, int]
    tokens: list[Tensor]

    def trajectory(self, device: torch.device, dtype: torch.dtype) -> FieldTrajectory:
        """The run as the core's trajectory; its head computes in ``dtype`` on ``device``."""
        head = self.model.model.diffusion_model.head
        return FieldTrajectory(head, self.sampler, self.noise.to(device), self.token_grid, self.tokens, dtype)


class Recorder:
    """Collects patch vectors while core samples, however it batches the two halves of guidance.

    :meth:`record` goes into ``transformer_options``, and :meth:`end_step` is called after each step.
    """

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self._halves: dict[int, Tensor] = {}

    def record(self, tokens: Tensor, transformer_options: dict[str, Any]) -> None:
        """Keep the vectors ``(halves * B, L, D)`` of one model call."""
        halves = transformer_options['cond_or_uncond']
        for half, part in zip(halves, tokens.chunk(len(halves)), strict=True):
            if half in self._halves:
                raise ValueError(
                    'record_field cannot follow combined or regional prompts: use one positive and one negative, or '
                    'turn record_field off.'
                )
            self._halves[half] = part.to('cpu', torch.bfloat16)

    def end_step(self) -> None:
        """Close the step: core numbers the conditional half 0 and the unconditional 1."""
        self.tokens.append(torch.stack([self._halves[half] for half in sorted(self._halves, reverse=True)]))
        self._halves = {}


def require_recordable(model_options: dict[str, Any], latent: dict[str, Any], denoise: float) -> None:
    """Check that a run can be replayed pixel by pixel afterwards."""
    if denoise < 0.9999 or 'noise_mask' in latent:
        raise ValueError(
            'record_field keeps runs from pure noise only: set denoise to 1 and take the mask off, or turn '
            'record_field off.'
        )
    for name in ('sampler_cfg_function', 'sampler_pre_cfg_function', 'sampler_post_cfg_function'):
        if model_options.get(name):
            raise ValueError(
                'record_field cannot follow a node that changes the guidance (RescaleCFG and the like): take it out, '
                'or turn record_field off.'
            )


def field_of(latent: dict[str, Any]) -> RecordedField:
    """The field recorded in a LATENT; ValueError says what to connect if there is none that fits."""
    field = latent.get(FIELD)
    if field is None:
        raise ValueError(f'decoding at another size or a region needs the field of the run: {CONNECT}.')
    if latent['samples'] is not field.samples and not torch.equal(latent['samples'], field.samples):
        raise ValueError(
            f'the LATENT was changed after it was sampled, so its field no longer fits: {CONNECT} directly.'
        )
    return field


def to_image(pixels: Tensor) -> Tensor:
    """Pixels ``(B, 3, H, W)`` in [-1, 1] to ComfyUI's IMAGE ``(B, H, W, 3)`` in [0, 1]."""
    return ((pixels.float() + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()


def decode(
    field: RecordedField,
    size: tuple[int, int],
    region: tuple[int, int, int, int],
    grain: float,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    chunk: int | None,
    callback: Callable[[int, int], None],
) -> Tensor:
    """Render a region of the whole picture at ``size``; see :meth:`FieldTrajectory.decode`.

    Sizes that are not multiples of the token grid need centre-aligned coordinates.
    """
    trajectory = field.trajectory(device, dtype)
    fits = all(side % patches == 0 for side, patches in zip(size, field.token_grid, strict=True))
    alignment = None if fits else 'centers'
    return trajectory.decode(size, region, grain, seed, chunk, alignment, callback)

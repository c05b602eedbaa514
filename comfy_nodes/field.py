"""A sampling run's field, recorded in ComfyUI and decoded at any size. It rides in the LATENT beside the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixnerd_plugin.functional.blending import BLEND
from pixnerd_plugin.models.heads.anywhere import knows_anywhere
from pixnerd_plugin.sampling import FieldTrajectory, FlowSampler

from .solver import INTERVAL

FIELD = 'pixnerd_field'
"""Key of a LATENT with a :class:`RecordedField`."""

CONNECT = 'connect the LATENT of a PixNerd Sampler with record_field on'

_REGIONAL = {
    'area': 'an area',
    'mask': 'a mask',
    'start_percent': 'a range of timesteps',
    'end_percent': 'a range of timesteps',
    'hooks': 'hooks (LoRAs or masks on a prompt)',
    'default': 'a default prompt beside others',
}
_GUIDANCE = ('sampler_cfg_function', 'sampler_pre_cfg_function', 'sampler_post_cfg_function')
_EVALUATION = ('model_function_wrapper', 'sampler_calc_cond_batch_function')
# Compiling changes no value.
_HARMLESS_WRAPPERS = ('torch.compile',)


class RecordedField(NamedTuple):
    """What decoding needs of a run.

    Args:
        model: the MODEL it was run with, LoRAs included.
        samples: its result, to tell whether the LATENT was changed since.
        indices: number of each picture in the run's batch, as a LATENT has them in ``batch_index``.
        noise: its base noise ``(B, 3, H, W)``, padded to whole patches.
        sampler: the solver, as the library's.
        token_grid: rows and columns of patches.
        tokens: patch vectors of each step, ``(branches, B, L, D)`` bfloat16, unconditional first.
    """

    model: Any
    samples: Tensor
    indices: list[int]
    noise: Tensor
    sampler: FlowSampler
    token_grid: tuple[int, int]
    tokens: list[Tensor]

    @property
    def scale(self) -> tuple[float, float]:
        """What the padded picture is of the sampled one, along each side."""
        (height, width), (padded_height, padded_width) = self.samples.shape[2:], self.noise.shape[2:]
        return padded_height / height, padded_width / width

    def pictures(self, positions: list[int]) -> RecordedField:
        """The field of some pictures of the batch."""
        if positions == list(range(len(self.indices))):
            return self
        return self._replace(
            samples=self.samples[positions],
            indices=[self.indices[position] for position in positions],
            noise=self.noise[positions],
            tokens=[s[:, positions] for s in self.tokens],
        )

    def trajectory(self, device: torch.device, dtype: torch.dtype) -> FieldTrajectory:
        """The run as the library's trajectory; its head computes in ``dtype`` on ``device``."""
        net = self.model.model.diffusion_model
        return FieldTrajectory(
            net.head, self.sampler, self.noise.to(device), self.token_grid, self.tokens, dtype, net.prediction
        )


class Recorder:
    """Collects patch vectors while core samples, however it batches the two halves of guidance.

    :meth:`record` goes into ``transformer_options``, and :meth:`end_step` is called after each step.

    Args:
        guider: core's, whose ``cfg`` is 1 while nothing is guided.
    """

    def __init__(self, guider: Any) -> None:
        self.guider = guider
        self.tokens: list[Tensor] = []
        self._halves: dict[int, Tensor] = {}
        self._is_guided = False

    def record(self, tokens: Tensor, transformer_options: dict[str, Any]) -> None:
        """Keep the vectors ``(halves * B, L, D)`` of one model call."""
        self._is_guided = self.guider.cfg != 1
        halves = transformer_options['cond_or_uncond']
        for half, part in zip(halves, tokens.chunk(len(halves)), strict=True):
            if half in self._halves:
                raise ValueError(
                    'record_field cannot follow a node that calls the model more than once a step: take it out, or '
                    'turn record_field off.'
                )
            self._halves[half] = part.to('cpu', torch.bfloat16)

    def end_step(self) -> None:
        """Close the step: core numbers the conditional half 0 and the unconditional 1."""
        # Some nodes have the unconditional half computed where nothing is guided.
        wanted = (1, 0) if self._is_guided else (0,)
        if any(half not in self._halves for half in wanted):
            raise ValueError(
                f'record_field needs the model in every step, and a node (a cache, or a range of timesteps) left it '
                f'out in step {len(self.tokens) + 1}: take it out, or turn record_field off.'
            )
        self.tokens.append(torch.stack([self._halves[half] for half in wanted]))
        self._halves = {}


def require_recordable(model: Any, conds: Mapping[str, list], latent: dict[str, Any], denoise: float) -> None:
    """Check that a run can be replayed pixel by pixel afterwards.

    Args:
        model: the MODEL.
        conds: the conditionings by the input they are connected to.
        latent: the LATENT to sample into.
        denoise: share of noise it starts from.
    """
    otherwise = 'or turn record_field off.'
    head = model.model.diffusion_model.head
    if not knows_anywhere(head):
        raise ValueError(
            f'only a neural field, or DeCo, can be recorded, and this model has a {type(head).__name__}: turn '
            'record_field off.'
        )
    if denoise < 0.9999 or 'noise_mask' in latent:
        raise ValueError(
            f'record_field keeps runs from pure noise only: set denoise to 1 and take the mask off, {otherwise}'
        )
    for prompt, cond in conds.items():
        if len(cond) != 1:
            raise ValueError(
                f'record_field cannot follow combined prompts, and {prompt} holds {len(cond)}: use one, {otherwise}'
            )
        for name, what in _REGIONAL.items():
            if cond[0][1].get(name) is not None:
                raise ValueError(f'record_field cannot follow {what}, which {prompt} has: take it off, {otherwise}')
    for name in _GUIDANCE + _EVALUATION:
        if model.model_options.get(name):
            raise ValueError(
                'record_field cannot follow a node that changes '
                f'{"the guidance (RescaleCFG" if name in _GUIDANCE else "how the model is called (tiling"} and the '
                f'like): take it out, {otherwise}'
            )
    for kind in model.wrappers.values():
        for key, wrappers in kind.items():
            if wrappers and key not in (INTERVAL, *_HARMLESS_WRAPPERS):
                raise ValueError(
                    f'record_field cannot follow the node before the sampler that calls itself {key!r}, because it '
                    f'may change what the model gives: take it out, {otherwise}'
                )


def field_of(latent: dict[str, Any], picture: int | None = None) -> RecordedField:
    """The field recorded in a LATENT, of all its pictures or of one; ValueError says what to connect if none fits."""
    field, samples = latent.get(FIELD), latent['samples']
    if field is None:
        raise ValueError(f'decoding at another size or a region needs the field of the run: {CONNECT}.')
    indices = list(latent.get('batch_index') or range(len(samples)))
    if len(indices) == len(samples) and set(indices) <= set(field.indices):
        found = field.pictures([field.indices.index(index) for index in indices])
        if samples is field.samples or (samples.shape == found.samples.shape and torch.equal(samples, found.samples)):
            return found if picture is None else found.pictures([picture])
    raise ValueError(
        'the LATENT is not as it was sampled (a node after PixNerd Sampler changed its pixels, or joined others to '
        f'it), so its field no longer fits: {CONNECT} directly, or through Latent From Batch.'
    )


def changes_sampled(latent: dict[str, Any], blend: float) -> bool:
    """Whether decoding with ``blend`` gives other pixels than the sampled ones, at the sampled size.

    Where every pixel is half a base pixel from a border or more, a blend up to that changes nothing.
    """
    field = latent.get(FIELD)
    if field is None:
        return False
    patch_size = field.model.model.diffusion_model.patch_size
    native = field.noise.shape[2:] == tuple(count * patch_size for count in field.token_grid)
    return not native or blend > BLEND


def to_image(pixels: Tensor) -> Tensor:
    """Pixels ``(B, 3, H, W)`` in [-1, 1] to ComfyUI's IMAGE ``(B, H, W, 3)`` in [0, 1]."""
    return ((pixels.float() + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()


def decode(
    field: RecordedField,
    size: tuple[int, int],
    region: tuple[int, int, int, int],
    grain: float,
    seed: int,
    blend: float,
    device: torch.device,
    dtype: torch.dtype,
    chunk: int | None,
    callback: Callable[[int, int], None],
) -> Tensor:
    """Render a region of the whole picture at ``size``; see :meth:`FieldTrajectory.decode`.

    Sizes that are not multiples of the token grid need centre-aligned coordinates.
    """
    trajectory = field.trajectory(device, dtype)
    # The picture is the upper left part of the padded one.
    height, width = (max(side, round(side * scale)) for side, scale in zip(size, field.scale, strict=True))
    fits = height % field.token_grid[0] == 0 and width % field.token_grid[1] == 0
    alignment = None if fits else 'centers'
    return trajectory.decode((height, width), region, grain, seed, chunk, alignment, callback, blend)

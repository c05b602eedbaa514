"""What users get wrong, each in one sentence that names the widget and the fix. Needs nothing of ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_UNKNOWN_CONDITIONS = {
    'control': 'a ControlNet, and there is none for PixNerd: take Apply ControlNet out',
    'gligen': 'a GLIGEN box, which PixNerd does not know: use ConditioningSetArea instead',
    'unclip_conditioning': 'a picture by unCLIP, which PixNerd does not know: take that node out',
    'reference_latents': 'a reference picture, which PixNerd does not know: take ReferenceLatent out',
}


def refuse_unknown_conditions(conditions: Mapping[str, Any], prompt: str) -> None:
    """ValueError if a conditioning holds what this model would not feel; ``prompt`` is the input it comes from."""
    for name, message in _UNKNOWN_CONDITIONS.items():
        if conditions.get(name) is not None:
            raise ValueError(f'{prompt} holds {message}.')


def check_condition(
    cond: Tensor | None,
    classes: int | None,
    num_classes: int | None,
    text_dim: int | None,
    text_length: int,
    prompt: str,
) -> Tensor:
    """Check a conditioning's tensor against the model; return what the network takes.

    Args:
        cond: text embeddings ``(n, tokens, width)``, or shares of classes ``(n, 1, classes)``.
        classes: how many classes it was made for, None for a text.
        num_classes, text_dim, text_length: of the model.
        prompt: the input it is connected to, ``'positive'`` or ``'negative'``.
    """
    if cond is None or cond.ndim != 3:
        raise ValueError(f'{prompt} holds nothing that a picture could be drawn from: connect a text or a class.')
    if num_classes is not None:
        if classes is None:
            raise ValueError(
                f'{prompt} holds a text, and this model draws classes: connect PixNerd Class Label instead.'
            )
        if cond.shape[2] != num_classes:
            raise ValueError(
                f'{prompt} holds a class of another model ({cond.shape[2]} classes, and this model has {num_classes}): '
                'connect the same MODEL to PixNerd Class Label and to the sampler.'
            )
        if cond.shape[1] != 1:
            raise ValueError(
                f'{prompt} holds {cond.shape[1]} classes in a row (Conditioning Concat), and a picture has one: mix '
                'them by Conditioning Average.'
            )
        return cond[:, 0]
    if classes is not None:
        raise ValueError(
            f'{prompt} holds a class label, and this model draws from text: connect PixNerd Text Encode instead.'
        )
    if cond.shape[2] != text_dim:
        raise ValueError(
            f'{prompt} comes from another text encoder (its embeddings are {cond.shape[2]} wide, and this model takes '
            f'{text_dim}): connect the CLIP of PixNerd Text Encoder Loader.'
        )
    if cond.shape[1] > text_length:
        raise ValueError(
            f'{prompt} holds {cond.shape[1]} tokens of text, and this model reads {text_length}: write one prompt in '
            'PixNerd Text Encode, which cuts it; Conditioning Concat and stock text encoders make longer ones.'
        )
    return cond


def warn_of_template(prompt: str) -> None:
    """Say in the log that a text of the right width was not encoded by our CLIP."""
    logging.warning(
        'PixNerd: %s was not encoded by the CLIP of PixNerd Text Encoder Loader. Other loaders put the prompt into '
        "another model's template, and the picture will not follow it as it should.",
        prompt,
    )


def check_sigma(sigma: float) -> None:
    """Check the noise level that a sampler asks for."""
    if not -1e-3 <= sigma <= 1 + 1e-3:
        raise ValueError(
            f'the sampler asks for sigma {sigma:.4g}, and those of PixNerd, a flow model, go from 1 to 0: connect '
            'PixNerd Sigmas or Basic Scheduler (Align Your Steps and GITS are for other models).'
        )


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Check the noise levels of a run."""
    for sigma in sigmas:
        check_sigma(sigma)
    if any(later > earlier for earlier, later in pairwise(sigmas)):
        raise ValueError('the sigmas rise on the way, and PixNerd Adams Solver goes from noise to picture only.')


def check_interval(start: float, end: float) -> None:
    """Check the ends of the guidance interval, in t."""
    if start > end:
        raise ValueError(f'guidance_start is {start}, after guidance_end {end}: set it to {end} or less.')


def check_shift(shift: float) -> float:
    """Return a shift of the time grid if it can be one."""
    if not 0 < shift < 1e6:
        raise ValueError(f'the shift is {shift:.4g}, and must be a number above 0: set it in the shift node or widget.')
    return shift


def check_finite(values: Tensor, t: Tensor | float | None = None) -> None:
    """Check the network's output at ``t``, or the picture without it."""
    if not torch.isfinite(values).all():
        what, when = ('picture', '') if t is None else ("model's output", f' at t = {float(t):.3f}')
        raise ValueError(
            f'the {what} is not finite (NaN or infinity){when}: set weight_dtype of the model loader to default, and '
            'check that the file, and any LoRA on it, is complete.'
        )


def check_safetensors(name: str, what: str) -> None:
    """Check that a model file is of the kind that the loaders take."""
    if not name.lower().endswith(('.safetensors', '.sft')):
        raise ValueError(f'{name} is not a safetensors file: choose the .safetensors file of the {what}.')


def check_region(size: tuple[int, int], region: tuple[int, int, int, int]) -> None:
    """Check ``(top, left, bottom, right)`` against the height and width of the whole picture."""
    top, left, bottom, right = region
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise ValueError(
            f'the region from x={left}, y={top} of {right - left}x{bottom - top} pixels does not lie inside the '
            f'picture of {size[1]}x{size[0]}: change region_x, region_y, region_width or region_height.'
        )


def check_batch_index(count: int, index: int) -> None:
    """Check the number of a picture in a batch of ``count``; -1 stands for all."""
    if index >= count:
        raise ValueError(
            f'batch_index is {index}, and the batch has {count}: set it from 0 to {count - 1}, or -1 for all.'
        )

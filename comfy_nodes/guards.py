"""What users get wrong, each in one sentence that names the widget and the fix. Needs nothing of ComfyUI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TRAINING_SUFFIXES = ('.ckpt', '.pth', '.pt', '.bin')


def check_size(size: tuple[int, int], patch_size: int, token_grid: tuple[int, int] | None) -> None:
    """Check the height and width of a picture that is to be sampled."""
    for name, value, count in zip(('height', 'width'), size, token_grid or (None, None), strict=True):
        step, what = (patch_size, "the model's patch size") if count is None else (count, 'the fixed grid of tokens')
        if value % step:
            below = value - value % step
            raise ValueError(
                f'{name} is {value}, which is not a multiple of {step} ({what}): set it to '
                f'{f"{below} or " if below else ""}{below + step}, or scale or crop the image to that.'
            )


def check_condition(cond: Any, num_classes: int | None, text_dim: int | None, text_length: int, prompt: str) -> Tensor:
    """Check a conditioning's content, class ids or text embeddings, against the model; return what the network takes.

    Args:
        cond: ``(embeddings, labels)``, of which labels are None for a text.
        num_classes, text_dim, text_length: of the model.
        prompt: the input it is connected to, ``'positive'`` or ``'negative'``.
    """
    embeddings, labels = cond
    if num_classes is not None:
        if labels is None:
            raise ValueError(
                f'{prompt} holds a text, and this model draws classes: connect PixNerd Class Label instead.'
            )
        if int(labels.max()) > num_classes:
            raise ValueError(
                f'{prompt} holds class {int(labels.max())} of another model, and this model has classes 0 to '
                f'{num_classes - 1}: connect the same MODEL to PixNerd Class Label and to the sampler.'
            )
        return labels
    if labels is not None:
        raise ValueError(
            f'{prompt} holds a class label, and this model draws from text: connect PixNerd Text Encode instead.'
        )
    if embeddings.ndim != 3 or embeddings.shape[2] != text_dim or embeddings.shape[1] > text_length:
        raise ValueError(
            f'{prompt} comes from another text encoder (its embeddings are {tuple(embeddings.shape[1:])}, and this '
            f'model takes up to {text_length} of width {text_dim}): connect the CLIP of PixNerd Text Encoder Loader.'
        )
    return embeddings


def check_finite(velocity: Tensor, t: Tensor | float) -> None:
    """Check the network's output."""
    if not torch.isfinite(velocity).all():
        raise ValueError(
            f"the model's output is not finite (NaN or infinity) at t = {float(t):.3f}: set weight_dtype of the model "
            'loader to default, and check that the file, and any LoRA on it, is complete.'
        )


def check_safetensors(name: str, what: str) -> None:
    """Check that a model file is of the kind that the loaders take."""
    if name.lower().endswith(TRAINING_SUFFIXES) and what == 'model':
        raise ValueError(
            f'model_name {name} is a training checkpoint: convert it once by "python tools/convert_checkpoint.py '
            f'{name} {name.rsplit(".", 1)[0]}.safetensors" in the PixNerd folder, and choose the new file.'
        )
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

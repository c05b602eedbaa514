"""From a checkpoint file to pictures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.lora import apply_lora
from pixnerd_plugin.checkpoints.metadata import default_sampling
from pixnerd_plugin.formats.parts import build_part
from pixnerd_plugin.formats.schema import naming
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.images import to_uint8
from pixnerd_plugin.models.conditioners import Conditioner, LabelConditioner, Qwen3TextEncoder
from pixnerd_plugin.models.layers.packing import gains_by_packing
from pixnerd_plugin.sampling import FlowSampler
from pixnerd_plugin.sampling.plan import apply_plan

if TYPE_CHECKING:
    from PIL import Image

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

TEXT_ENCODER = 'text_encoder'
"""Name of the folder beside a checkpoint where its text encoder is looked for."""

# Sides of the pictures that the published networks were trained on, in patches: 256 pixels for classes, 512 for text.
_PATCHES_OF_CLASSES, _PATCHES_OF_TEXT = 16, 32


class Pipeline:
    """A network with all it takes to draw: its sampler, its conditioner, and the size it was trained at.

    Attributes:
        net: the backbone, on ``device``, in evaluation mode.
        sampler: a :class:`~pixnerd_plugin.sampling.FlowSampler` with the settings of the file.
        conditioner: labels or prompts to what the network takes; None for a text network without ``text_encoder``.
        size: (height, width) of the pictures it was trained on, in pixels.
        class_names: one a class, or None if there are none.
        path: the file it came from.
        packs: pack the weights before drawing (see :mod:`~pixnerd_plugin.models.layers.packing`), again if something
            unpacked them in between.
        plans: the file's times and guided steps for a few steps (see :mod:`~pixnerd_plugin.sampling.plan`).
    """

    def __init__(
        self,
        net: nn.Module,
        sampler: FlowSampler,
        conditioner: Conditioner | None,
        size: tuple[int, int],
        path: str | Path = 'the network',
        packs: bool = False,
        plans: Sequence[dict[str, Any]] = (),
    ):
        self.net: Any = net
        self.sampler = sampler
        self.conditioner = conditioner
        self.size = size
        self.path = path
        self.packs = packs
        self.plans = plans

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def is_text(self) -> bool:
        """Whether the network draws prompts rather than classes."""
        return self.net.text_dim is not None

    @property
    def class_names(self) -> list[str] | None:
        return getattr(self.conditioner, 'class_names', None)

    def __call__(
        self,
        labels: Sequence[int | str] | None = None,
        prompts: Sequence[str] | None = None,
        seeds: int | Sequence[int] = 0,
        size: int | tuple[int, int] | None = None,
        *,
        negative_prompt: str = '',
        batch_size: int = 8,
        token_grid: tuple[int, int] | None = None,
        blend: float = 0.0,
        planned: bool = False,
        callback: Callable[[Any], None] | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Draw one picture for each label or prompt.

        A picture depends on its own label or prompt and seed alone, up to the rounding of other batch sizes.

        Args:
            labels: class numbers or names, for a class-conditional network.
            prompts: texts, for a text-to-image network.
            seeds: one a picture; a number is the seed of the first, and the next take the numbers after it.
            size: (height, width) in pixels, or one number for both; by default as trained.
            negative_prompt: what guidance leads away from, in place of the empty prompt.
            batch_size: most pictures sampled at once.
            token_grid: ``(rows, columns)`` of tokens, for pictures of another size than the trained one.
            blend: joins the patches of finer pictures, 0.5 without seams; 0 is the published rule.
            planned: take the times and the guided steps that the file has for this number of steps; not with
                ``timeshift`` or ``guidance_interval``, which they replace.
            callback: called with a :class:`~pixnerd_plugin.sampling.Step` after each step of each batch.
            settings: in place of the file's: ``num_steps``, ``guidance_scale``, ``guidance_interval``, ``timeshift``,
                and ``order`` where the solver has one; ``type`` names another solver.

        Raises:
            ValueError: naming what does not fit the network, before anything is drawn.
        """
        from PIL import Image

        what = self._wanted(labels, prompts)
        seeds = [seeds + index for index in range(len(what))] if isinstance(seeds, (int, np.integer)) else list(seeds)
        if len(seeds) != len(what):
            raise ValueError(f'{len(what)} pictures are asked for with {len(seeds)} seeds; give one each, or a number')
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size} must be at least 1')
        self.check(what, seeds, size, token_grid)
        sampler = self.sampler.replace(**settings)
        if planned:
            sampler = self.plan(sampler, settings)
        pictures: list[Image.Image] = []
        for start in range(0, len(what), batch_size):
            part = slice(start, start + batch_size)
            images = self.sample(
                what[part],
                seeds[part],
                size,
                sampler=sampler,
                negative_prompt=negative_prompt,
                token_grid=token_grid,
                blend=blend,
                callback=callback,
            )
            pictures.extend(map(Image.fromarray, to_uint8(images)))
        return pictures

    def plan(self, sampler: FlowSampler, given: Iterable[str] = ()) -> FlowSampler:
        """``sampler`` with the times and the guided steps that the file has for it.

        Args:
            sampler: its solver, number of steps and guidance scale choose the plan.
            given: names of the settings that the user gave.

        Raises:
            ValueError: if the file has none for this sampler, or a setting was given that a plan chooses itself.
        """
        with naming(self.path):
            return apply_plan(sampler, self.plans, given)

    def sample(
        self,
        what: Sequence[int | str],
        seeds: Sequence[int],
        size: int | tuple[int, int] | None = None,
        *,
        sampler: FlowSampler | None = None,
        negative_prompt: str = '',
        **options: Any,
    ) -> Any:
        """Sample one batch as tensors, for fields, trajectories and previews.

        Args:
            what: labels or prompts, one a picture.
            seeds: of each picture's noise.
            size: as in :meth:`__call__`.
            sampler: in place of :attr:`sampler`.
            options: of :meth:`FlowSampler.sample <pixnerd_plugin.sampling.FlowSampler.sample>`: ``record_field``, …

        Returns:
            Images ``(B, C, H, W)`` in [-1, 1], not clamped, or a tuple as the sampler gives it.

        Raises:
            ValueError: naming what does not fit the network, or if the network gives NaN or infinity.
        """
        conditioner = self._require_conditioner()
        generators = image_generators([int(seed) for seed in seeds])
        noise = draw_noise(generators, (self.net.in_channels, *self.size_of(size))).to(self.device)
        null = conditioner([negative_prompt]) if negative_prompt else conditioner.null(1)
        sampler = sampler or self.sampler
        if self.packs and not self.net.training and not sampler.compile:
            self.net.pack()
        result = sampler.sample(self.net, noise, conditioner(what), null, generators=generators, **options)
        image: Tensor = result[0] if isinstance(result, tuple) else result
        if not image.isfinite().all():
            raise ValueError(f'{self.path}: the network gave NaN or infinity; try float32 or a lower guidance scale')
        return result

    def check(
        self,
        what: Sequence[int | str],
        seeds: Sequence[int] = (),
        size: int | tuple[int, int] | None = None,
        token_grid: tuple[int, int] | None = None,
    ) -> None:
        """Check what is to be drawn, all of it, before any of it is; arguments as in :meth:`sample`.

        Raises:
            ValueError: naming the label, seed, size or grid that does not fit the network.
        """
        conditioner = self._require_conditioner()
        if not self.is_text:
            conditioner(what)
        elif wrong := [prompt for prompt in what if not isinstance(prompt, str)]:
            raise ValueError(f'prompt {wrong[0]!r} is no text; {self.path} draws prompts')
        for seed in seeds:
            if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
                raise ValueError(f'seed {seed!r} must be a whole number from 0 to 2**63 - 1')
        shape = (1, self.net.in_channels, *self.size_of(size))
        self.net.grid_of(torch.empty(shape, device='meta'), token_grid)

    def size_of(self, size: int | Sequence[int] | None) -> tuple[int, int]:
        """Height and width in pixels of what :meth:`__call__` takes as ``size``.

        Raises:
            ValueError: if it is no size.
        """
        if size is None:
            return self.size
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in sides):
            raise ValueError(f'size={size!r} must be (height, width) in pixels, or one number for both')
        return int(sides[0]), int(sides[1])

    def _wanted(self, labels: Sequence[int | str] | None, prompts: Sequence[str] | None) -> list[int | str]:
        given, other = (prompts, labels) if self.is_text else (labels, prompts)
        if given is None or other is not None:
            draws = 'prompts, not classes; give prompts' if self.is_text else 'classes, not prompts; give labels'
            raise ValueError(f'{self.path} draws {draws}=[...] and nothing else')
        return [given] if isinstance(given, (str, int, np.integer)) else list(given)

    def _require_conditioner(self) -> Conditioner:
        if self.conditioner is None:
            raise ValueError(
                f'{self.path} draws prompts; give its text encoder, the folder of the Qwen3 it was trained with '
                '(text_encoder=..., or --text-encoder on the command line)'
            )
        return self.conditioner


def load_pipeline(
    path: str | Path,
    text_encoder: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    weights: str = 'ema',
    class_names: Sequence[str] | str | Path | None = None,
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    packs: bool | None = None,
) -> Pipeline:
    """Load a checkpoint with all it takes to draw.

    Args:
        path: as for :func:`~pixnerd_plugin.load_backbone`.
        text_encoder: folder of the Qwen3 model in transformers layout, for text-to-image networks; by default the
            folder ``text_encoder`` beside the file, if there is one.
        device: where to compute; by default a GPU if there is one.
        dtype: of the network, ``'float32'``, ``'bfloat16'``, ``'float16'``, or ``'auto'``: bfloat16 where the device
            has instructions for it, else float32. By default the file's, so that the picture of a seed does not depend
            on the machine.
        weights: ``'ema'`` or ``'raw'``, where the file tells which it has.
        class_names: of a class-conditional network, or a text file of them, one a line; by default the file's.
        lora: file or PEFT folder of a low-rank adapter, added to the weights ``lora_strength`` times.
        packs: hold the weights as products on a CPU read them while drawing; by default on CPUs with AVX2 or
            AVX-512. It changes results by rounding only.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the file is damaged or no network, or an argument does not fit it; one line.
    """
    device = resolve_device(device)
    if dtype == 'auto':
        dtype = fastest_dtype(device)
        logging.getLogger(__name__).info('%s computes in %s on %s', path, str(dtype).removeprefix('torch.'), device)
    dtype = resolve_dtype(dtype)
    checkpoint = read_checkpoint(path, weights)
    metadata, architecture = checkpoint.metadata, checkpoint.architecture
    is_text = 'text_dim' in architecture
    conditioner: Conditioner | None
    if is_text:
        beside = Path(path).parent / TEXT_ENCODER
        text_encoder = text_encoder or (beside if beside.is_dir() else None)
        conditioner = None if text_encoder is None else _text_encoder(text_encoder, architecture, path)
    else:
        if text_encoder is not None:
            raise ValueError(f'{path} draws classes and takes no text_encoder')
        conditioner = LabelConditioner(architecture['num_classes'], class_names or metadata.get('class_names'))
    with naming(f'{path}: its sampler'):
        sampler = build_part(metadata.get('sampling') or default_sampling(architecture), 'sampler')
    published = (_PATCHES_OF_TEXT if is_text else _PATCHES_OF_CLASSES) * architecture['patch_size']
    side = metadata.get('resolution') or published
    net = checkpoint.load()
    if lora is not None and (skipped := apply_lora(net, lora, lora_strength)):
        warnings.warn(f'{lora}: {len(skipped)} entries of a text encoder are left out: {skipped[0]}, …', stacklevel=2)
    net = net.to(device, dtype).eval()
    packs = gains_by_packing(device) if packs is None else packs
    plans = metadata.get('plans', ())
    return Pipeline(net, sampler, conditioner and conditioner.to(device), (side, side), path, packs, plans)


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """``device``, by default a GPU if there is one.

    Raises:
        ValueError: if torch does not know it, or this machine has none.
    """
    wanted = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {str(wanted)!r} is not known; use 'cuda', 'cuda:1', 'mps' or 'cpu'") from None
    try:
        torch.empty(1, device=device).cpu()
    # Each backend says in its own way that it is not there; 'meta' holds no numbers.
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f'device {str(wanted)!r}: this machine has no such usable device; leave it out or use cpu'
        ) from None
    return device


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it (GPUs since Ampere, CPUs with AVX-512 BF16), else float32."""
    if device.type == 'cuda':
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = device.type == 'cpu' and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its name, ``'bfloat16'``; None is None.

    Raises:
        ValueError: if networks do not compute in it.
    """
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and known not in DTYPES.values():
        raise ValueError(f'dtype {str(dtype)!r} is not known; use one of {", ".join(DTYPES)}, auto')
    return known


def _text_encoder(folder: str | Path, architecture: dict[str, Any], path: str | Path) -> Qwen3TextEncoder:
    encoder = Qwen3TextEncoder(folder, architecture['text_length'])
    if encoder.dim != architecture['text_dim']:
        raise ValueError(
            f'the text encoder {folder} gives embeddings of width {encoder.dim}, and {path} was trained with '
            f'{architecture["text_dim"]}'
        )
    return encoder

"""The mmengine model: wires data preprocessor, conditioner, backbone, loss and sampler, and computes nothing itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.models.lora import add_lora
from pixnerd_plugin.registry import MODELS, build

# uint8 pixels to [-1, 1]; the copy to a GPU does not wait for the previous step.
PREPROCESSOR = dict(type='ImgDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, non_blocking=True)


@MODELS.register_module()
class PixNerd(BaseModel):
    """Training and sampling of a PixNerd network under mmengine's Runner.

    DDP wraps this model, so it sees one forward a step: that of mode 'loss', within which the loss calls the backbone's
    ``encode`` and ``decode``.

    Each part is an object, or a dict to build it from.

    Args:
        backbone: the network, ``(x, t, cond) -> velocity``; the only part that the EMA follows.
        conditioner: turns ``data_samples`` into the network's condition; holds nothing trainable.
        loss: ``(backbone, images, cond, null_cond=...) -> dict`` of losses; not needed for sampling.
        sampler: has ``sample(backbone, noise, cond, null_cond) -> images``; not needed for training.
        data_preprocessor: by default maps the loader's uint8 images to [-1, 1] on the model's device.
        lora: train low-rank adapters of the backbone, through PEFT, instead of its weights: the arguments of
            :func:`~pixnerd_plugin.models.lora.add_lora`, such as ``dict(rank=16)``.
        compile: compile the backbone in place; parameter names do not change. ``'regional'`` compiles one block for
            all, and the head (see :meth:`PixNerdDiT.compile <pixnerd_plugin.models.backbones.PixNerdDiT.compile>`).
    """

    def __init__(
        self,
        backbone: Any,
        conditioner: Any,
        loss: Any = None,
        sampler: Any = None,
        data_preprocessor: Any = None,
        lora: dict[str, Any] | None = None,
        compile: bool | str = False,
    ):
        super().__init__(data_preprocessor=data_preprocessor or PREPROCESSOR)
        self.backbone = build(MODELS, backbone)
        self.conditioner = build(MODELS, conditioner)
        self.loss = build(MODELS, loss)
        self.sampler = build(MODELS, sampler)
        if getattr(self.loss, 'teacher', ...) is None:
            # Without a teacher the projector gets no gradient, and DDP would wait for one.
            self.loss.projector.requires_grad_(False)
        self.resolution: int | None = None
        self.training_side: int | None = None
        """Side of the square among training images of several shapes, in pixels; the loop sets it."""
        self.lora = None if lora is None else add_lora(self.backbone, **lora)
        if compile not in (True, False, 'regional'):
            raise ValueError(f"PixNerd: compile={compile!r} is not known; use True, False or 'regional'")
        if compile:
            self.backbone.compile(**dict(regional=True) if compile == 'regional' else {})

    def init_weights(self) -> None:
        """Do nothing: parts initialise themselves when built, and a part that was passed in may be trained already."""

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def description(self) -> dict[str, Any]:
        """What a checkpoint stores about the model besides its weights, in plain Python; unknown entries are left out.

        ``architecture`` rebuilds the network and ``sampling`` the sampler. ``class_names`` are the conditioner's,
        ``resolution`` is the height in pixels of the training images, of the square among several shapes, and ``lora``
        has the adapters' rank and alpha.
        """
        parts = dict(
            architecture=self.backbone.architecture() if hasattr(self.backbone, 'architecture') else None,
            sampling=self.sampler.config() if hasattr(self.sampler, 'config') else None,
            class_names=getattr(self.conditioner, 'class_names', None),
            resolution=self.resolution,
            lora=self.lora,
        )
        return {name: part for name, part in parts.items() if part is not None}

    def forward(self, inputs: Tensor, data_samples: Mapping[str, Any] | None = None, mode: str = 'tensor') -> Any:
        """Run one of the three modes on a preprocessed batch.

        Args:
            inputs: images in [-1, 1], (B, 3, H, W); in mode 'tensor' the noisy images x_t.
            data_samples: what the conditioner reads (``label``, ``text``, ...); in mode 'predict' also ``noise`` like
                ``inputs`` or ``seed`` (B,), in mode 'tensor' ``t`` (B,).
            mode: 'loss' returns a dict of losses; 'predict' returns images (B, 3, H, W), of the size of ``inputs`` and
                not clamped; 'tensor' returns the velocity (B, 3, H, W).

        Raises:
            ValueError: if the mode is unknown, or the part that it needs is missing.
        """
        samples = data_samples or {}
        if mode == 'loss':
            if self.loss is None:
                raise ValueError('this model has no loss to train with; set model.loss')
            cond, null = self._conditions(samples, len(inputs))
            self.resolution = (self.training_side or inputs.shape[2]) // getattr(self.loss, 'max_density', 1)
            return self.loss(self.backbone, inputs, cond, null_cond=null)
        if mode == 'predict':
            return self._predict(inputs, samples)
        if mode == 'tensor':
            cond, _ = self._conditions(samples, len(inputs))
            return self.backbone(inputs, samples['t'], cond)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    @torch.no_grad()
    def sample(self, data_samples: Mapping[str, Any], noise: Tensor, **options: Any) -> Tensor:
        """Sample one image per row of ``noise`` (B, 3, H, W); returns the same shape, not clamped.

        ``options`` go to the sampler: ``generators``, ``callback``, ``token_grid``, ...

        Raises:
            ValueError: if the model has no sampler.
        """
        if self.sampler is None:
            raise ValueError('this model has no sampler; set model.sampler')
        # One null condition serves all pictures.
        cond, null = self._conditions(data_samples, 1)
        return self.sampler.sample(self.backbone, noise.to(self.device), cond, null, **options)

    @torch.no_grad()
    def losses_per_image(
        self, inputs: Tensor, data_samples: Mapping[str, Any], noise: Tensor, t: Tensor
    ) -> dict[str, Tensor]:
        """The time and each loss term of preprocessed pictures, all (B,), with given noise and times.

        No condition is dropped. Of a loss of one's own that takes no noise or times, or keeps no ``per_image``, there
        are the means, without the time.

        Raises:
            ValueError: if the model has no loss.
        """
        if self.loss is None:
            raise ValueError('this model has no loss to measure; set model.loss')
        cond, null = self._conditions(data_samples, len(inputs))
        keep = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        fixed = dict(noise=noise, t=t.to(inputs.device), drop_mask=keep)
        taken = inspect.signature(self.loss.forward).parameters
        known = {name: value for name, value in fixed.items() if name in taken}
        terms = self.loss(self.backbone, inputs, cond, null_cond=null, **known)
        if len(known) == len(fixed) and hasattr(self.loss, 'per_image'):
            return dict(self.loss.per_image)
        return {name: value.detach().expand(len(inputs)) for name, value in terms.items()}

    def _conditions(self, data_samples: Mapping[str, Any], nulls: int) -> tuple[Tensor, Tensor]:
        self.conditioner.to(self.device)
        return self.conditioner.from_batch(data_samples), self.conditioner.null(nulls)

    def _predict(self, inputs: Tensor, data_samples: Mapping[str, Any]) -> Tensor:
        if 'noise' in data_samples:
            return self.sample(data_samples, data_samples['noise'])
        if 'seed' in data_samples:
            generators = image_generators(data_samples['seed'].tolist())
            return self.sample(data_samples, draw_noise(generators, inputs.shape[1:]), generators=generators)
        return self.sample(data_samples, torch.randn(inputs.shape))

"""PixNerd as one of ComfyUI's own models: what core's detection, loader, samplers and patchers need to know of it.

ComfyUI's sigma is ``1 - t`` and its model output ``-v``; the picture is its own latent. The network is the core's
:class:`PixNerdDiT`, built from ComfyUI's operations and attention.
"""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from pixnerd_plugin.checkpoints.layouts.names import find_prefix
from pixnerd_plugin.checkpoints.layouts.published import describe_difference
from pixnerd_plugin.models.backbones import PixNerdDiT

from .guards import check_condition, check_finite, check_size
from .weights import METADATA_TENSOR, describe, metadata_tensor, select

IMAGE_MODEL = 'pixnerd'

OPTIONS = 'pixnerd'
"""Key of ``transformer_options`` with ``token_grid``, ``field_chunk`` and ``record``; all optional."""

LABELS = 'pixnerd_labels'
"""Key of a conditioning's dict with class ids ``(n,)``."""


class PixNerdLatent(comfy.latent_formats.LatentFormat):
    """Pixels in [-1, 1] are the latent; previews show them as they are."""

    latent_channels = 3
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)


class ComfyPixNerdDiT(PixNerdDiT):
    """The core's network under ComfyUI's calling convention."""

    def __init__(self, image_model: str, dtype: torch.dtype | None = None, **architecture: Any):
        super().__init__(attention=_attention, dtype=dtype, **architecture)
        self.dtype = dtype

    def init_weights(self) -> None:
        """Nothing: every weight comes from the file, and float8 tensors cannot be drawn at random."""

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        labels: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **unused: Any,
    ) -> Tensor:
        """``-v`` of ``x (B, 3, H, W)`` at ``t = 1 - timestep``; ``context`` for text models, ``labels`` for classes."""
        options = (transformer_options or {}).get(OPTIONS, {})
        grid = options.get('token_grid')
        check_size(x.shape[2:], self.patch_size, grid)
        t = 1 - timestep
        s, _ = self.encode(x, t, context if self.num_classes is None else labels, grid)
        velocity = self.decode(s, x, self.grid_of(x, grid), field_chunk=options.get('field_chunk'))
        check_finite(velocity, t[0])
        if 'record' in options:
            options['record'](s, transformer_options)
        return -velocity


class PixNerdModel(comfy.model_base.BaseModel):
    """Core's model around the network."""

    def __init__(self, model_config: PixNerdConfig, device: torch.device | None = None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=ComfyPixNerdDiT)
        self.class_names: list[str] | None = model_config.metadata.get('class_names')

    def load_model_weights(
        self, sd: dict[str, Tensor], unet_prefix: str = '', *args: Any, **kwargs: Any
    ) -> PixNerdModel:
        """As core's, but a file whose tensors do not fit exactly is an error instead of a line in the log."""
        prefix = find_prefix(sd, unet_prefix)
        tensors = select(sd, prefix)
        # What is not of the network (Lightning's other copy of the weights, the loss's projector) is not left over.
        sd.clear()
        expected = {name: tuple(tensor.shape) for name, tensor in self.diffusion_model.state_dict().items()}
        if problem := describe_difference(set(expected), set(tensors)):
            raise ValueError(f'the file is no whole PixNerd model: {problem}. Download or convert it again.')
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f'the file does not fit: {name} is {tuple(tensor.shape)}, not {expected[name]}.')
        return super().load_model_weights(tensors, '', *args, **kwargs)

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Tensor:
        """Sigma, whatever scale the model's sampling, or a shift node's, gives its timesteps."""
        return timestep / getattr(self.model_sampling, 'multiplier', 1.0)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The condition as a regular one: repeating its tokens, as core does for cross-attention, would change it."""
        net = self.diffusion_model
        cond = check_condition(
            (kwargs.get('cross_attn'), kwargs.get(LABELS)),
            net.num_classes,
            net.text_dim,
            net.text_length,
            kwargs.get('prompt_type', 'the conditioning'),
        )
        key = 'c_crossattn' if net.num_classes is None else 'labels'
        return {key: comfy.conds.CONDRegular(cond.to(kwargs['device']))}

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As core's, with what the tensors do not tell as one more of them."""
        tensors = super().state_dict_for_saving(*args, **kwargs)
        return {**tensors, f'model.diffusion_model.{METADATA_TENSOR}': metadata_tensor(self.model_config.metadata)}


class PixNerdConfig(comfy.supported_models_base.BASE):
    """Core's configuration of a PixNerd of any size, for classes or text."""

    unet_config = {'image_model': IMAGE_MODEL}
    unet_extra_config: dict[str, Any] = {}
    latent_format = PixNerdLatent
    # Trained in bfloat16; nobody has tried float16.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]
    # Peak activations of XL and XXL in bfloat16, counted op by op, are at most 0.038 in core's unit from 512x512 on.
    # Smaller pictures take about 200 MB whatever their size (a chunk of the field), which core's own reserve covers.
    memory_usage_factor = 0.04

    def __init__(self, unet_config: dict[str, Any]):
        super().__init__(unet_config)
        self.metadata: dict[str, Any] = self.unet_config.pop('metadata')
        # As published, if the file does not say: text models sample under shift 3, class models under none.
        published = 1.0 if 'num_classes' in self.unet_config else 3.0
        timeshift = (self.metadata.get('sampling') or {}).get('timeshift', published)
        self.sampling_settings = {'shift': timeshift, 'multiplier': 1.0}

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = '', device: torch.device | None = None
    ) -> PixNerdModel:
        return PixNerdModel(self, device=device)

    def clip_target(self, state_dict: dict[str, Tensor] | None = None) -> None:
        """No checkpoint of PixNerd holds its text encoder."""
        return None


def require_pixnerd(model: Any, widget: str) -> Any:
    """Return a MODEL if it is a PixNerd, for nodes that cannot work with any other."""
    if not isinstance(getattr(model, 'model', None), PixNerdModel):
        raise ValueError(f'{widget} is not a PixNerd model: connect the MODEL of PixNerd Model Loader.')
    return model


def with_options(model: Any, **options: Any) -> Any:
    """A clone of a MODEL whose network is called with further options of :data:`OPTIONS`; None takes one away."""
    model = model.clone()
    to = model.model_options['transformer_options']
    merged = {**to.get(OPTIONS, {}), **options}
    to[OPTIONS] = {name: value for name, value in merged.items() if value is not None}
    return model


def unet_config(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """Core's description of the network under ``prefix``: its arguments, and the file's metadata."""
    metadata = describe(state_dict, prefix)
    architecture = {name: value for name, value in metadata['architecture'].items() if name != 'type'}
    return dict(architecture, image_model=IMAGE_MODEL, metadata=metadata)


def register() -> None:
    """Let core's detection recognise PixNerd, for its own loaders as for ours. A second call changes nothing."""
    detect = comfy.model_detection.detect_unet_config
    if getattr(detect, 'knows_pixnerd', False):
        return

    def detect_unet_config(state_dict: dict[str, Tensor], key_prefix: str, *args: Any, **kwargs: Any) -> dict | None:
        prefix = find_prefix(state_dict, key_prefix)
        return detect(state_dict, key_prefix, *args, **kwargs) if prefix is None else unet_config(state_dict, prefix)

    detect_unet_config.knows_pixnerd = True
    comfy.model_detection.detect_unet_config = detect_unet_config
    comfy.supported_models.models.append(PixNerdConfig)

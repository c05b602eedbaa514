"""PixNerd as one of ComfyUI's own models: what core's detection, loader, samplers and patchers need to know of it.

ComfyUI's sigma is ``1 - t`` and its model output ``-v``; the picture is its own latent. The network is the library's
:class:`PixNerdDiT`, built from ComfyUI's operations and attention.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_sampling
import comfy.supported_models
import comfy.supported_models_base
import torch
from torch import Tensor

from pixnerd_plugin.checkpoints.layouts.names import find_prefix
from pixnerd_plugin.checkpoints.layouts.published import describe_difference
from pixnerd_plugin.checkpoints.metadata import default_sampling
from pixnerd_plugin.models.backbones import PixNerdDiT

from .guards import check_condition, check_finite, refuse_unknown_conditions, warn_of_template
from .network import OPTIONS, ComfyPixNerdDiT
from .text_encoder import MARK, text_encoder_target
from .weights import METADATA_TENSOR, POSITIONS, POSITIONS_LAYER, describe, is_of_quantised, metadata_tensor, select

IMAGE_MODEL = 'pixnerd'

CLASSES = 'pixnerd_classes'
"""Key of a conditioning's dict with the number of classes its tensor ``(n, 1, classes)`` has shares of."""


class PixNerdLatent(comfy.latent_formats.LatentFormat):
    """Pixels in [-1, 1] are the latent; previews show them as they are."""

    latent_channels = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class PixNerdModel(comfy.model_base.BaseModel):
    """Core's model around the network."""

    def __init__(self, model_config: PixNerdConfig, device: torch.device | None = None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=ComfyPixNerdDiT)
        self.class_names: list[str] | None = model_config.metadata.get('class_names')
        self._positive: Tensor | None = None
        self._has_warned = False

    def load_model_weights(
        self, sd: dict[str, Tensor], unet_prefix: str = '', *args: Any, **kwargs: Any
    ) -> PixNerdModel:
        """As core's, but a file whose tensors do not fit exactly is an error instead of a line in the log."""
        prefix = find_prefix(sd, unet_prefix)
        tensors = select(sd, prefix)
        # What else is there (Lightning's other copy of the weights, the loss's projector) is not left over; a
        # checkpoint's text encoder, under a prefix of its own, is core's to read.
        for name in [name for name in sd if name.startswith(unet_prefix)]:
            del sd[name]
        expected = _shapes(self.model_config.metadata['architecture'])
        plain = {name: tensor for name, tensor in tensors.items() if not is_of_quantised(name, tensors)}
        due = {name for name in expected if name in plain or name not in tensors}
        if problem := describe_difference(due, set(plain)):
            raise ValueError(f'the file is no whole PixNerd model: {problem}. Download or convert it again.')
        for name, tensor in plain.items():
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f'the file does not fit: {name} is {tuple(tensor.shape)}, not {expected[name]}.')
        if POSITIONS in tensors:
            tensors[POSITIONS_LAYER] = tensors.pop(POSITIONS)
        return super().load_model_weights(tensors, '', *args, **kwargs)

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Tensor:
        """Sigma, whatever scale the model's sampling, or a shift node's, gives its timesteps."""
        return timestep / getattr(self.model_sampling, 'multiplier', 1.0)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The condition as a regular one: repeating its tokens, as core does for cross-attention, would change it."""
        net, prompt = self.diffusion_model, kwargs.get('prompt_type', 'the conditioning')
        if not isinstance(self.model_sampling, comfy.model_sampling.CONST):
            raise ValueError(
                'a node before the sampler gives the MODEL the sampling of models that predict noise (as '
                'ModelSamplingDiscrete does), and PixNerd is a flow model: take it out.'
            )
        refuse_unknown_conditions(kwargs, prompt)
        cond = check_condition(
            kwargs.get('cross_attn'), kwargs.get(CLASSES), net.num_classes, net.text_dim, net.text_length, prompt
        )
        if net.num_classes is None and not kwargs.get(MARK):
            warn_of_template(prompt)
        if net.step_end:
            cond = self._without_guidance(cond, prompt)
        key = 'c_crossattn' if net.num_classes is None else 'labels'
        conds = {key: comfy.conds.CONDRegular(cond.to(kwargs['device']))}
        if 'noise' in kwargs:
            # A fixed grid of tokens is shared out by area, so the network must know the whole.
            conds['picture'] = comfy.conds.CONDConstant(tuple(kwargs['noise'].shape[2:]))
        return conds

    def _without_guidance(self, cond: Tensor, prompt: str) -> Tensor:
        """The positive condition for every input, so that no cfg has an effect: this network has learned its guidance.

        Core asks for the positive one first.
        """
        if prompt == 'positive':
            self._positive = cond
        elif self._positive is not None:
            if not self._has_warned:
                logging.info(
                    'PixNerd: this model has learned its guidance (MeanFlow), so cfg and the negative prompt have no '
                    'effect. Other samplers than PixNerd Sampler: euler, with cfg 1, which is twice as fast.'
                )
            self._has_warned = True
            cond = self._positive
        return cond

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """The picture, which is finite if the output of all steps was."""
        check_finite(latent)
        return super().process_latent_out(latent)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As core's, with what the tensors do not tell as one more of them."""
        prefix = 'model.diffusion_model.'
        tensors = super().state_dict_for_saving(*args, **kwargs)
        if prefix + POSITIONS_LAYER in tensors:
            tensors[prefix + POSITIONS] = tensors.pop(prefix + POSITIONS_LAYER)
        return {**tensors, prefix + METADATA_TENSOR: metadata_tensor(self.model_config.metadata)}


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
    vae_key_prefix = ['vae.']
    text_encoder_key_prefix = ['text_encoders.']

    def __init__(self, unet_config: dict[str, Any]):
        super().__init__(unet_config)
        self.metadata: dict[str, Any] = self.unet_config.pop('metadata')
        # As published, if the file does not say: text models sample under shift 3, class models under none.
        published = default_sampling(self.metadata['architecture'])
        timeshift = {**published, **(self.metadata.get('sampling') or {})}['timeshift']
        self.sampling_settings = {'shift': timeshift, 'multiplier': 1.0}

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = '', device: torch.device | None = None
    ) -> PixNerdModel:
        return PixNerdModel(self, device=device)

    def process_vae_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mark of core's VAE that passes pixels through, whatever the checkpoint has."""
        return {'pixel_space_vae': torch.tensor(1.0)}

    def clip_target(self, state_dict: dict[str, Tensor] | None = None) -> Any:
        """The text encoder in a checkpoint that core saved with it; None where there is none."""
        (prefix,) = self.text_encoder_key_prefix
        tensors = {name: tensor for name, tensor in (state_dict or {}).items() if name.startswith(prefix)}
        return text_encoder_target(tensors, prefix) if tensors else None


def _shapes(architecture: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a network of this architecture has; newer core makes layers without, until they are loaded."""
    with torch.device('meta'):
        net = PixNerdDiT(**{name: value for name, value in architecture.items() if name != 'type'})
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


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


def unet_config(state_dict: dict[str, Tensor], prefix: str, header: dict[str, str] | None) -> dict[str, Any]:
    """Core's description of the network under ``prefix``: its arguments, and the file's metadata."""
    metadata = describe(state_dict, prefix, header or {})
    architecture = {name: value for name, value in metadata['architecture'].items() if name != 'type'}
    return dict(architecture, image_model=IMAGE_MODEL, metadata=metadata)


def register() -> None:
    """Let core's detection recognise PixNerd, for its own loaders as for ours. A second call changes nothing."""
    detect = comfy.model_detection.detect_unet_config
    if getattr(detect, 'knows_pixnerd', False):
        return

    def detect_unet_config(
        state_dict: dict[str, Tensor], key_prefix: str, metadata: dict[str, str] | None = None
    ) -> dict | None:
        prefix = find_prefix(state_dict, key_prefix)
        if prefix is None:
            return detect(state_dict, key_prefix, metadata=metadata)
        return unet_config(state_dict, prefix, metadata)

    detect_unet_config.knows_pixnerd = True
    comfy.model_detection.detect_unet_config = detect_unet_config
    comfy.supported_models.models.append(PixNerdConfig)

"""Loading the model and the text encoder from ComfyUI's model folders."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from safetensors import SafetensorError

from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.layouts.names import find_prefix

from ..guards import check_safetensors
from ..model import require_pixnerd
from ..schema import advanced, search_aliases
from ..text_encoder import load_text_encoder
from ..weights import METADATA_TENSOR, add_header_metadata, metadata_tensor

WEIGHT_DTYPES = ['default', 'fp8_e4m3fn', 'fp8_e4m3fn_fast', 'fp8_e5m2']


class PixNerdModelLoader(io.ComfyNode):
    """A PixNerd file to MODEL and its pass-through VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdModelLoader',
            display_name='PixNerd Model Loader',
            category='PixNerd/loaders',
            description='Loads a PixNerd model, for text or for classes. It works on pixels: its VAE passes them '
            'through.',
            **search_aliases('pixnerd', 'checkpoint', 'load diffusion model', 'unet loader'),
            inputs=[
                io.Combo.Input(
                    'model_name',
                    options=folder_paths.get_filename_list('diffusion_models'),
                    tooltip='A PixNerd file in models/diffusion_models, as it was downloaded or trained: .safetensors, '
                    '.ckpt or .pth. Of averaged and raw weights, the averaged ones are loaded.',
                ),
                advanced(
                    io.Combo.Input(
                        'weight_dtype',
                        options=WEIGHT_DTYPES,
                        default='default',
                        tooltip='How the weights are kept in memory. default keeps the quality of the file; the fp8 '
                        'types nearly halve its memory at some loss.',
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name='MODEL', tooltip='For PixNerd Sampler, KSampler and every other sampler.'),
                io.Vae.Output(display_name='VAE', tooltip='Passes pixels through, for VAE Encode and VAE Decode.'),
            ],
        )

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        tensors = _read_model(model_name)
        options: dict[str, object] = {}
        if weight_dtype != 'default':
            options['dtype'] = getattr(torch, weight_dtype.replace('fp8', 'float8').removesuffix('_fast'))
            options['fp8_optimizations'] = weight_dtype.endswith('_fast')
        model = require_pixnerd(comfy.sd.load_diffusion_model_state_dict(tensors, model_options=options), 'model_name')
        return io.NodeOutput(model, comfy.sd.VAE(sd={'pixel_space_vae': torch.tensor(1.0)}))


class PixNerdTextEncoderLoader(io.ComfyNode):
    """A Qwen3 file to CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdTextEncoderLoader',
            display_name='PixNerd Text Encoder Loader',
            category='PixNerd/loaders',
            **search_aliases('pixnerd', 'clip loader', 'qwen3'),
            description='Loads Qwen3-1.7B, the text encoder of the text-to-image models, as they were trained with it.',
            inputs=[
                io.Combo.Input(
                    'text_encoder_name',
                    options=folder_paths.get_filename_list('text_encoders'),
                    tooltip='Qwen3-1.7B as one .safetensors file in models/text_encoders.',
                ),
                advanced(
                    io.Combo.Input(
                        'device',
                        options=['default', 'cpu'],
                        default='default',
                        tooltip='cpu keeps the text encoder off the graphics card.',
                    )
                ),
            ],
            outputs=[io.Clip.Output(display_name='CLIP', tooltip='For PixNerd Text Encode or CLIP Text Encode.')],
        )

    @classmethod
    def execute(cls, text_encoder_name: str, device: str) -> io.NodeOutput:
        check_safetensors(text_encoder_name, 'text encoder')
        tensors, _ = _read('text_encoders', text_encoder_name)
        options = {}
        if device == 'cpu':
            options = {'load_device': torch.device('cpu'), 'offload_device': torch.device('cpu')}
        try:
            return io.NodeOutput(load_text_encoder(tensors, options))
        except ValueError as error:
            raise ValueError(f'text_encoder_name {text_encoder_name}: {error}') from None


def _read_model(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a model file in any layout, its metadata as one of them.

    Raises:
        ValueError: if it is no PixNerd, or damaged; one line.
    """
    if name.lower().endswith(('.safetensors', '.sft')):
        # By core's reader, which maps the file.
        tensors, header = _read('diffusion_models', name)
        prefix = find_prefix(tensors)
        if prefix is not None and not any('.lora_' in tensor for tensor in tensors):
            add_header_metadata(tensors, prefix, header)
            return tensors
    try:
        checkpoint = read_checkpoint(folder_paths.get_full_path_or_raise('diffusion_models', name))
        metadata = {**checkpoint.metadata, 'architecture': checkpoint.architecture}
        return {**checkpoint.tensors, METADATA_TENSOR: metadata_tensor(metadata)}
    except ValueError as error:
        raise ValueError(
            f'model_name {name} is not a PixNerd model, or damaged: {_without_path(error, name)}. Choose a PixNerd '
            'file, or load this one with the nodes made for it.'
        ) from None


def _without_path(error: ValueError, name: str) -> str:
    """The message of our reader, which begins with the whole path of the file."""
    text = ' '.join(str(error).split())
    return text.partition(f'{Path(name).name}: ')[2] or text


def _read(folder: str, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a file in one of ComfyUI's model folders."""
    path = folder_paths.get_full_path_or_raise(folder, name)
    try:
        tensors, header = comfy.utils.load_torch_file(path, return_metadata=True)
    except (SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'{name} is damaged or not complete ({reason}): download or convert it again.') from None
    return tensors, header or {}

"""Prompts and class labels to CONDITIONING."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from pixnerd_plugin.models.conditioners import LabelConditioner

from ..imagenet import imagenet_names
from ..model import CLASSES, require_pixnerd
from ..schema import advanced, search_aliases
from ..text_encoder import NAME


class PixNerdTextEncode(io.ComfyNode):
    """A prompt and what to avoid to the two conditionings of a sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdTextEncode',
            display_name='PixNerd Text Encode',
            category='PixNerd/conditioning',
            **search_aliases('pixnerd', 'prompt', 'clip text encode'),
            description='Encodes a prompt and a negative prompt. Up to 128 tokens are read, as they are written: '
            'brackets and weights such as (cat:1.2) are plain text.',
            inputs=[
                io.Clip.Input('clip', tooltip='From PixNerd Text Encoder Loader.'),
                io.String.Input(
                    'text', multiline=True, dynamic_prompts=True, tooltip='What the picture shows, in plain sentences.'
                ),
                io.String.Input(
                    'negative_text',
                    multiline=True,
                    dynamic_prompts=True,
                    default='',
                    tooltip='What guidance leads away from. The models were trained with the empty prompt.',
                ),
            ],
            outputs=[
                io.Conditioning.Output('positive', display_name='positive', tooltip='The prompt.'),
                io.Conditioning.Output('negative', display_name='negative', tooltip='The negative prompt.'),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, negative_text: str) -> io.NodeOutput:
        return io.NodeOutput(*(_encode(clip, prompt) for prompt in (text, negative_text)))


def _encode(clip: Any, prompt: str) -> list:
    if clip is None:
        raise ValueError('clip is empty: connect the CLIP of PixNerd Text Encoder Loader.')
    tokens = clip.tokenize(prompt)
    if NAME not in tokens:
        raise ValueError(
            f'clip was loaded as a text encoder of another model ({", ".join(tokens)}), whose template it would put '
            'around the prompt: load the same file by PixNerd Text Encoder Loader, and connect its CLIP.'
        )
    return clip.encode_from_tokens_scheduled(tokens)


class PixNerdClassLabel(io.ComfyNode):
    """A class by number or name to the conditionings of a class-conditional model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdClassLabel',
            display_name='PixNerd Class Label',
            category='PixNerd/conditioning',
            **search_aliases('pixnerd', 'imagenet', 'class'),
            description='Chooses the class that a class-conditional model draws.',
            inputs=[
                io.Model.Input('model', tooltip='The model that will draw: it knows how many classes there are.'),
                io.String.Input(
                    'label',
                    default='0',
                    multiline=True,
                    tooltip='Number of the class, from 0, or its name. With several lines, the pictures of a batch '
                    'take them in turn.',
                ),
                advanced(
                    io.String.Input(
                        'class_names',
                        default='',
                        multiline=True,
                        optional=True,
                        tooltip='Names of the classes, one a line in order, where the model file has none. Several '
                        "names of one class are separated by commas. For 1000 classes without names, ImageNet's are "
                        'known.',
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output('positive', display_name='positive', tooltip='The class.'),
                io.Conditioning.Output('null', display_name='null', tooltip='No class: what guidance leads away from.'),
            ],
        )

    @classmethod
    def execute(cls, model: Any, label: str, class_names: str = '') -> io.NodeOutput:
        core = require_pixnerd(model, 'model').model
        num_classes = core.diffusion_model.num_classes
        if num_classes is None:
            raise ValueError('model draws from text and has no classes: connect PixNerd Text Encode instead.')
        labels = [line.strip() for line in label.splitlines() if line.strip()]
        if not labels:
            raise ValueError(f'label is empty: set it to a class, 0 to {num_classes - 1}, or its name.')
        names = [line.strip() for line in class_names.splitlines() if line.strip()] or core.class_names
        if names is None and num_classes == 1000:
            names = imagenet_names()
        try:
            conditioner = LabelConditioner(num_classes, names)
        except ValueError as error:
            raise ValueError(f'class_names: {error}; write one line per class, or leave it empty.') from None
        try:
            ids = conditioner(labels)
        except ValueError as error:
            raise ValueError(f'label: {error}.') from None
        # Shares of the classes, so that nodes that mix conditionings mix classes; no class at all is the null class.
        shares = torch.nn.functional.one_hot(ids, num_classes).float()[:, None]
        extra = {CLASSES: num_classes}
        return io.NodeOutput([[shares, extra]], [[torch.zeros(1, 1, num_classes), dict(extra)]])

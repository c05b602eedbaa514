"""PixNerd's text encoder as a ComfyUI CLIP: Qwen3 on core's llama blocks, with core's Qwen tokenizer.

It gives what :class:`pixnerd_plugin.models.conditioners.Qwen3TextEncoder` gives: the prompt as it is, cut or padded to
128 tokens, rotary frequencies rounded to bfloat16 as in training, and the empty prompt's padding attending to itself.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders
import torch
from comfy.text_encoders.llama import BaseLlama, Llama2_, Llama2Config
from torch import Tensor

from pixnerd_plugin.checkpoints.layouts.published import describe_difference
from pixnerd_plugin.checkpoints.words import WORDS_TENSOR, Words, read_words

NAME = 'pixnerd_qwen3'
PAD = 151643
LENGTH = 128
ROPE_THETA = 1e6

MARK = 'pixnerd_text'
"""Key of a conditioning's dict that tells that this encoder made it."""


class Qwen3Tokenizer(comfy.sd1_clip.SDTokenizer):
    """Core's Qwen tokenizer without what ComfyUI adds to prompts: no weights, embeddings, template or chunks."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None):
        from transformers import Qwen2Tokenizer

        super().__init__(
            str(Path(inspect.getfile(BaseLlama)).with_name('qwen25_tokenizer')),
            tokenizer_class=Qwen2Tokenizer,
            has_start_token=False,
            has_end_token=False,
            pad_with_end=False,
            pad_token=PAD,
            max_length=LENGTH,
            embedding_key=NAME,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list]:
        """One row of 128 ``(id, weight)``, the weight always 1; with ``return_word_ids`` a third entry, always 0."""
        ids = self.tokenizer(text)['input_ids'][:LENGTH]
        ids += [PAD] * (LENGTH - len(ids))
        return {NAME: [[(token, 1.0, 0) if return_word_ids else (token, 1.0) for token in ids]]}


class WordTokenizer:
    """What core takes for a tokenizer: that of a tiny text encoder, whose file says which words it knows."""

    def __init__(self, words: Words):
        self.words = words
        self._named: set[str] = set()

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list]:
        """As :meth:`Qwen3Tokenizer.tokenize_with_weights`; the log says once which words are not known."""
        words = self.words
        ids, unknown = words.encode(text)
        for word in unknown:
            self._warn(f'the text encoder does not know the word {word!r}')
        if len(ids) > words.max_length:
            self._warn(f'the prompt has {len(ids)} tokens, and the text encoder reads the first {words.max_length}')
        ids = ids[: words.max_length] + [words.pad] * (words.max_length - len(ids))
        return {NAME: [[(token, 1.0, 0) if return_word_ids else (token, 1.0) for token in ids]]}

    def _warn(self, what: str) -> None:
        if what not in self._named and len(self._named) < 100:
            self._named.add(what)
            logging.warning('PixNerd: %s', what)

    def untokenize(self, token_weight_pair: list[tuple]) -> list[tuple]:
        return [(pair, self.words.words[pair[0]]) for pair in token_weight_pair]

    def state_dict(self) -> dict[str, Tensor]:
        """What core saves with the text encoder."""
        return {f'{NAME}.transformer.{WORDS_TENSOR}': self.words.to_tensor()}


class Qwen3(BaseLlama, torch.nn.Module):
    """Core's llama with Qwen3's normalised queries and keys; sizes from ``config``."""

    def __init__(self, config: dict[str, int], dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__()
        sizes = dict(config)
        head_dim = sizes.pop('head_dim')
        llama = Llama2Config(**sizes, rms_norm_eps=1e-6, rope_theta=ROPE_THETA)
        llama.head_dim = head_dim
        # Core's name for an RMSNorm on each head.
        llama.q_norm = llama.k_norm = 'gemma3'
        self.num_layers = llama.num_hidden_layers
        self.dtype = dtype
        self.model = Llama2_(llama, device=device, dtype=dtype, ops=operations)
        exact = ROPE_THETA ** -(torch.arange(0, head_dim, 2).float() / head_dim)
        # PixNerd was trained on frequencies rounded to bfloat16. Core divides its own by rope_scale.
        self.rope_scale = exact / exact.bfloat16().float()

    def forward(self, input_ids: Tensor | None, *args: Any, embeds: Tensor, **kwargs: Any) -> tuple:
        self.model.config.rope_scale = self.rope_scale.to(embeds.device)
        return super().forward(input_ids, *args, embeds=embeds, **kwargs)


class Qwen3ClipModel(comfy.sd1_clip.SDClipModel):
    """Core's wrapper of a text model, with the release's mask."""

    def __init__(self, device: Any = 'cpu', dtype: torch.dtype | None = None, model_options: dict | None = None):
        options = model_options or {}
        words: Words | None = options[f'{NAME}_words']
        self.pad = PAD if words is None else words.pad
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=LENGTH if words is None else words.max_length,
            textmodel_json_config=dict(options[f'{NAME}_config']),
            model_class=Qwen3,
            special_tokens={'pad': self.pad},
            enable_attention_masks=True,
            model_options=options,
        )

    def process_tokens(self, tokens: list[list[int]], device: torch.device) -> tuple:
        embeds, _, _, info = super().process_tokens(tokens, device)
        mask = padding_mask(torch.tensor(tokens, device=device), self.pad)
        return embeds, mask, mask.sum(1).tolist(), info


def padding_mask(ids: Tensor, pad: int = PAD) -> Tensor:
    """1 for the prompt and 0 for the padding after it; ones for an empty prompt, as in training. ``(B, N)``, long."""
    rest = (ids != pad).long().flip(1).cummax(1).values.flip(1)
    return torch.where(rest.any(dim=1, keepdim=True), rest, 1)


class Qwen3TextModel(comfy.sd1_clip.SD1ClipModel):
    """What core's CLIP holds: the text model under its name."""

    def __init__(self, device: Any = 'cpu', dtype: torch.dtype | None = None, model_options: dict | None = None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, name=NAME, clip_model=Qwen3ClipModel
        )

    def encode_token_weights(self, token_weight_pairs: dict[str, list]) -> tuple:
        cond, pooled, *_ = super().encode_token_weights(token_weight_pairs)
        return cond, pooled, {MARK: True}


def make_target(tensors: dict[str, Tensor]) -> comfy.supported_models_base.ClipTarget:
    """What core builds a CLIP from for the tensors of a Qwen3; the words of a tiny one are taken out of them.

    Raises:
        ValueError: if they are not those of a Qwen3 text model.
    """
    stored = tensors.pop(WORDS_TENSOR, None)
    words = None if stored is None else read_words(stored)

    def tokenizer(embedding_directory: Any = None, tokenizer_data: dict | None = None) -> Any:
        return Qwen3Tokenizer(embedding_directory, tokenizer_data) if words is None else WordTokenizer(words)

    return comfy.supported_models_base.ClipTarget(tokenizer, text_model(read_config(tensors), words))


def text_model(config: dict[str, int], words: Words | None = None) -> type[Qwen3TextModel]:
    """The text model with the sizes of ``config``, as core's loaders call for it."""

    class Sized(Qwen3TextModel):
        def __init__(self, device: Any = 'cpu', dtype: torch.dtype | None = None, model_options: dict | None = None):
            # Float16, core's default for text encoders, does not have bfloat16's range.
            dtype = torch.bfloat16 if dtype == torch.float16 else dtype
            own = {f'{NAME}_config': config, f'{NAME}_words': words}
            super().__init__(device, dtype, {**(model_options or {}), **own})

    return Sized


def text_encoder_target(tensors: dict[str, Tensor], prefix: str) -> comfy.supported_models_base.ClipTarget | None:
    """What core builds a CLIP from for the tensors under ``prefix`` of a checkpoint; None if they are others."""
    own = f'{prefix}{NAME}.transformer.'
    transformer = {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
    if not transformer:
        return None
    return make_target(transformer)


def read_config(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The sizes of a Qwen3 from its tensors.

    Raises:
        ValueError: if they are not those of a Qwen3 text model.
    """
    first = 'model.layers.0.'
    try:
        vocab_size, hidden_size = tensors['model.embed_tokens.weight'].shape
        head_dim = tensors[f'{first}self_attn.q_norm.weight'].shape[0]
        return dict(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            head_dim=head_dim,
            intermediate_size=tensors[f'{first}mlp.gate_proj.weight'].shape[0],
            num_hidden_layers=1 + max(int(name.split('.')[2]) for name in tensors if name.startswith('model.layers.')),
            num_attention_heads=tensors[f'{first}self_attn.q_proj.weight'].shape[0] // head_dim,
            num_key_value_heads=tensors[f'{first}self_attn.k_proj.weight'].shape[0] // head_dim,
        )
    except KeyError as error:
        raise ValueError(
            f'this is not a Qwen3 text encoder (it has no {error.args[0]}): choose the safetensors file of Qwen3-1.7B.'
        ) from None


def load_text_encoder(tensors: dict[str, Tensor], model_options: dict[str, Any] | None = None) -> comfy.sd.CLIP:
    """A CLIP from a Qwen3 in transformers' key layout, with or without the ``model.`` prefix.

    Raises:
        ValueError: if the tensors are not exactly those of a Qwen3 text model.
    """
    own = ('model.', WORDS_TENSOR)
    tensors = {name if name.startswith(own) else f'model.{name}': tensor for name, tensor in tensors.items()}
    # The output layer of the language model; text encoding ends before it.
    tensors.pop('model.lm_head.weight', None)
    # ComfyUI computes in float32 on weights of any dtype; float16, its default, does not have bfloat16's range.
    options = {'dtype': torch.bfloat16, **(model_options or {})}
    target = make_target(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=options)
    transformer = getattr(clip.cond_stage_model, NAME).transformer
    if problem := describe_difference(set(transformer.state_dict()), set(tensors)):
        raise ValueError(f'this is not a whole Qwen3 text encoder: {problem}. Download it again.')
    clip.load_sd(tensors)
    return clip

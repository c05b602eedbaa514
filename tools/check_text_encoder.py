#!/usr/bin/env python
"""Report what the text encoder in FOLDER gives: shapes, norms, the empty prompt, the rounded rotary frequencies, time.

Meant for the true Qwen3-1.7B, which the tests cannot carry. With COMFYUI_PATH naming a ComfyUI checkout (and its Python
running this), ComfyUI's CLIP from the same weights is compared too. It exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pixnerd_plugin.models.conditioners import Qwen3TextEncoder

PROMPTS = [
    '',
    'a photo of a cat',
    'a steampunk laboratory, brass pipes, warm light, ' * 20,
    '一只猫的照片',
    '窓辺で眠る猫',
    'a 🐈 under a 🌈',
]


def relative_error(value: Tensor, reference: Tensor) -> float:
    """``‖value - reference‖ / ‖reference‖``."""
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm())


def exact_frequencies(encoder: Qwen3TextEncoder) -> Tensor:
    """The rotary inverse frequencies before the release's rounding to bfloat16, float32."""
    import torch

    config = encoder.encoder.module.config
    theta = getattr(config, 'rope_theta', None) or config.rope_parameters['rope_theta']
    return 1.0 / theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)


def describe(encoder: Qwen3TextEncoder, prompts: list[str]) -> Tensor:
    """Print one line per prompt and the time; return the embeddings."""
    start = time.perf_counter()
    encoder.null(1)
    print(f'loading and encoding the empty prompt: {time.perf_counter() - start:.1f} s')
    start = time.perf_counter()
    embeds = encoder(prompts).cpu()
    print(f'{len(prompts)} prompts: {time.perf_counter() - start:.2f} s')
    print(f'shape {tuple(embeds.shape)}, {embeds.dtype}')
    _, mask = encoder.tokenize(prompts)
    for prompt, tokens, embed in zip(prompts, mask.sum(1).tolist(), embeds.float(), strict=True):
        shown = prompt if len(prompt) <= 40 else f'{prompt[:39]}…'
        print(f'  {tokens:4d} tokens, norm {embed.norm():10.3f}, largest {embed.abs().max():8.3f}  {shown!r}')
    return embeds


def check(encoder: Qwen3TextEncoder, prompts: list[str], embeds: Tensor) -> bool:
    """Print and judge what must hold for any text encoder."""
    import torch

    empty = encoder.null(1).cpu()[0]
    results = {
        'finite': bool(embeds.isfinite().all()),
        'empty prompt, alone and in a batch, is the same': torch.equal(embeds[prompts.index('')], empty),
        'prompts differ from the empty one': all(
            relative_error(embed, empty) > 1e-2 for prompt, embed in zip(prompts, embeds, strict=True) if prompt
        ),
    }
    for name, passed in results.items():
        print(f'  {"ok  " if passed else "FAIL"}  {name}')
    return all(results.values())


def report_rounding(encoder: Qwen3TextEncoder, prompts: list[str], embeds: Tensor) -> None:
    """Print how far exact rotary frequencies would take the embeddings from those the weights were trained on."""
    rotary = encoder.encoder.module.rotary_emb
    rounded = rotary.inv_freq
    rotary.inv_freq = exact_frequencies(encoder).to(rounded.device)
    filled = [index for index, prompt in enumerate(prompts) if prompt]
    exact = encoder([prompts[index] for index in filled]).cpu()
    rotary.inv_freq = rounded
    print(f'rotary frequencies: rounding moves them by {relative_error(rounded.cpu(), exact_frequencies(encoder)):.1e}')
    for row, index in enumerate(filled):
        print(f'  output without the rounding is {relative_error(exact[row], embeds[index]):.1e} away, prompt {index}')


def comfyui_clip(comfyui: str, folder: Path) -> Any:
    """The CLIP that PixNerd's ComfyUI loader makes of the weights in ``folder``."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), comfyui]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from safetensors.torch import load_file

    from comfy_nodes.text_encoder import load_text_encoder

    tensors = {
        name: tensor for file in sorted(folder.glob('*.safetensors')) for name, tensor in load_file(file).items()
    }
    return load_text_encoder(tensors)


def compare_with_comfyui(clip: Any, encoder: Qwen3TextEncoder, prompts: list[str], embeds: Tensor) -> bool:
    """Print and judge how far ComfyUI's embeddings, computed in float32, are from ours."""
    import torch

    limit = 1e-4 if encoder.dtype == torch.float32 else 2e-2
    ids, _ = encoder.tokenize(prompts)
    passed = True
    for index, prompt in enumerate(prompts):
        tokens = clip.tokenize(prompt)
        same = [token for token, _ in next(iter(tokens.values()))[0]] == ids[index].tolist()
        error = relative_error(clip.encode_from_tokens(tokens)[0], embeds[index])
        ok = same and error <= limit
        passed &= ok
        verdict, agreement = 'ok  ' if ok else 'FAIL', 'agree' if same else 'differ'
        print(f'  {verdict}  ComfyUI, prompt {index}: ids {agreement}, error {error:.1e}')
    return passed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='FOLDER', help='folder (or cached hub id) of the text encoder')
    parser.add_argument('--max-length', type=int, default=128, help='tokens per prompt (default: %(default)s)')
    parser.add_argument('--dtype', default='bfloat16', help='bfloat16 or float32 (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--prompt', action='append', default=[], help='a further prompt, may be repeated')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from pixnerd_plugin.engine.config import hide_broken_torchvision
    from pixnerd_plugin.models.conditioners import Qwen3TextEncoder

    prompts = PROMPTS + args.prompt
    hide_broken_torchvision()  # transformers imports it
    encoder = Qwen3TextEncoder(args.folder, args.max_length, args.dtype).to(args.device)
    embeds = describe(encoder, prompts)
    passed = check(encoder, prompts, embeds)
    report_rounding(encoder, prompts, embeds)
    if comfyui := os.environ.get('COMFYUI_PATH'):
        passed &= compare_with_comfyui(comfyui_clip(comfyui, encoder.folder), encoder, prompts, embeds)
    if not passed:
        sys.exit('error: a check failed, see above')


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)

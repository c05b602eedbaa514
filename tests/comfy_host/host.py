"""A real ComfyUI: its modules in this process, and tiny model files for it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .launch import make_torchvision_importable

ROOT = Path(__file__).resolve().parents[2]
CLASS_NAMES = ['tench', 'goldfish', 'great white shark', 'tiger shark', 'hammerhead']
TEXT_DIM = 24


def host_is_at_hand() -> bool:
    """Whether :func:`require_host` would give one."""
    return bool(os.environ.get('COMFYUI_PATH')) and importlib.util.find_spec('aiohttp') is not None


def require_host() -> Path:
    """The checkout that COMFYUI_PATH names; without one, or without its requirements, the module is skipped."""
    path = os.environ.get('COMFYUI_PATH')
    if not path:
        pytest.skip('COMFYUI_PATH does not name a ComfyUI checkout', allow_module_level=True)
    if importlib.util.find_spec('aiohttp') is None:
        pytest.skip("run with the Python that has ComfyUI's requirements", allow_module_level=True)
    return Path(path).resolve()


def import_host() -> None:
    """Make ``comfy`` importable in this process, on the CPU, with PixNerd registered."""
    path = require_host()
    if str(path) not in sys.path:
        make_torchvision_importable()
        sys.path[:0] = [str(ROOT), str(path)]
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        import nodes  # noqa: F401  (the API that packs are loaded under)

        from comfy_nodes.model import register

        register()


def randomize(net: nn.Module, seed: int) -> nn.Module:
    """Give every parameter moderate random values, so that no path of the network is dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = 0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1
            center = 1.0 if 'norm' in name else 0.0
            parameter.copy_(center + scale * torch.randn(parameter.shape, generator=generator))
    return net


def build_net(kind: str) -> nn.Module:
    """A tiny network, ``'class'`` or ``'text'``, with random weights; patches of 16 pixels as published."""
    from pixnerd_plugin.models.backbones import PixNerdDiT

    condition = dict(num_classes=5) if kind == 'class' else dict(text_dim=TEXT_DIM, text_depth=1)
    head = dict(type='NeuralFieldHead', width=16, depth=1)
    if kind == 'text':
        head |= dict(coordinates='cosine', normalize='fc1')
    return randomize(PixNerdDiT(dim=48, depth=2, num_heads=4, head=head, **condition), seed=len(kind)).eval()


def imagenet_net() -> nn.Module:
    """A tiny network for 1000 classes, in the published variant."""
    from pixnerd_plugin.models.backbones import PixNerdDiT

    head = dict(type='NeuralFieldHead', width=16, depth=1)
    return randomize(PixNerdDiT(dim=48, depth=1, num_heads=4, num_classes=1000, head=head), seed=3).eval()


def save_net(net: nn.Module, path: Path, **metadata: object) -> None:
    """Write a network as the converter does: our key names, and the architecture in the header."""
    text = json.dumps({'architecture': net.architecture(), **metadata})
    save_file(net.state_dict(), path, {'pixnerd': text})


def class_conditioning(label: int, num_classes: int = 5) -> list:
    """CONDITIONING of one class as PixNerd Class Label gives it; ``num_classes`` for none."""
    shares = torch.eye(num_classes + 1)[label, :num_classes]
    return [[shares[None, None], {'pixnerd_classes': num_classes}]]


def text_encoder_tensors() -> dict[str, Tensor]:
    """A tiny Qwen3 with the real vocabulary."""
    vocab_size, layers, heads, kv_heads, head_dim, hidden = 151936, 2, 4, 2, 8, 32
    shapes = {'embed_tokens': (vocab_size, TEXT_DIM), 'norm': (TEXT_DIM,)}
    for i in range(layers):
        layer = f'layers.{i}.'
        shapes |= {
            f'{layer}self_attn.q_proj': (heads * head_dim, TEXT_DIM),
            f'{layer}self_attn.k_proj': (kv_heads * head_dim, TEXT_DIM),
            f'{layer}self_attn.v_proj': (kv_heads * head_dim, TEXT_DIM),
            f'{layer}self_attn.o_proj': (TEXT_DIM, heads * head_dim),
            f'{layer}self_attn.q_norm': (head_dim,),
            f'{layer}self_attn.k_norm': (head_dim,),
            f'{layer}mlp.gate_proj': (hidden, TEXT_DIM),
            f'{layer}mlp.up_proj': (hidden, TEXT_DIM),
            f'{layer}mlp.down_proj': (TEXT_DIM, hidden),
            f'{layer}input_layernorm': (TEXT_DIM,),
            f'{layer}post_attention_layernorm': (TEXT_DIM,),
        }
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in shapes.items():
        # Large enough that attention is far from uniform.
        value = torch.randn(shape, generator=generator) * (1.5 / TEXT_DIM**0.5 if len(shape) > 1 else 0.2)
        tensors[f'{name}.weight'] = (value + (1 if len(shape) == 1 else 0)).bfloat16()
    return tensors


def save_text_encoder_folder(folder: Path, comfyui: Path) -> None:
    """The same tiny Qwen3 as a transformers folder, with ComfyUI's bundled tokenizer."""
    folder.mkdir(parents=True)
    tensors = text_encoder_tensors()
    save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    config = dict(
        model_type='qwen3',
        architectures=['Qwen3Model'],
        vocab_size=151936,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_parameters=dict(rope_theta=1e6, rope_type='default'),
        dtype='bfloat16',
    )
    (folder / 'config.json').write_text(json.dumps(config))
    for file in (comfyui / 'comfy' / 'text_encoders' / 'qwen25_tokenizer').iterdir():
        shutil.copy(file, folder / file.name)

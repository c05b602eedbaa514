"""A text model that draws what it is asked for, trained in seconds: one printed digit in one of four colours."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from pixnerd_plugin.checkpoints.text_encoder import convert_text_encoder
from pixnerd_plugin.models.backbones import PixNerdDiT
from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
from pixnerd_plugin.models.conditioners.tiny_qwen3 import write_tiny_qwen3

from .host import save_net

SIDE = 32
COLOURS = dict(red=(222, 38, 38), green=(30, 165, 60), blue=(50, 90, 235), yellow=(240, 195, 20))
DIGITS = dict(one='1', four='4', eight='8')
WORDS = ('a', *COLOURS, *DIGITS)
NETWORK, ENCODER = 'painter.safetensors', 'painter_text.safetensors'
STEPS, BATCH, RATE = 400, 12, 3e-3


def write_painter(models: Path, scratch: Path) -> None:
    """Train it, and write network and text encoder where ComfyUI looks."""
    write_tiny_qwen3(scratch, WORDS, 4, 32)
    encoder = Qwen3TextEncoder(scratch, 4, 'float32')
    convert_text_encoder(scratch, models / 'text_encoders' / ENCODER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = PixNerdDiT(
            dim=64, depth=2, num_heads=4, mlp_hidden=128, patch_size=16, text_dim=32, text_length=4, text_depth=1,
            position_rule='fixed_step', prediction='image', head=dict(type='NeuralFieldHead', width=16, depth=1),
        )  # fmt: skip
        train(net, encoder)
    save_net(net, models / 'diffusion_models' / NETWORK)


def train(net: nn.Module, encoder: Qwen3TextEncoder) -> None:
    wishes = [(colour, digit) for colour in COLOURS for digit in DIGITS]
    with torch.no_grad():
        texts, null = encoder([f'a {colour} {digit}' for colour, digit in wishes]), encoder([''])[0]
    images = torch.stack([to_tensor(draw(*wish)) for wish in wishes])
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        chosen = torch.randint(len(wishes), (BATCH,))
        cond = torch.where((torch.rand(BATCH) < 0.1)[:, None, None], null, texts[chosen])
        t = (torch.randn(BATCH) * 0.8 - 0.8).sigmoid()
        noise = torch.randn(BATCH, 3, SIDE, SIDE)
        x_t = noise + t[:, None, None, None] * (images[chosen] - noise)
        loss = (net(x_t, t, cond) - (images[chosen] - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@cache
def draw(colour: str, digit: str) -> np.ndarray:
    """The picture (32, 32, 3) uint8 of a digit on black."""
    canvas = Image.new('RGB', (SIDE, SIDE))
    ImageDraw.Draw(canvas).text((16, 16), DIGITS[digit], fill=COLOURS[colour], anchor='mm', font_size=30)
    return np.asarray(canvas)


def read(picture: np.ndarray) -> str:
    """The prompt whose picture is nearest to this one (H, W, 3) uint8 of any size."""
    height, width = picture.shape[0] // SIDE, picture.shape[1] // SIDE
    small = picture.reshape(SIDE, height, SIDE, width, 3).mean((1, 3))
    wishes = {f'a {colour} {digit}': draw(colour, digit) for colour in COLOURS for digit in DIGITS}
    return min(wishes, key=lambda wish: float(np.square(small - wishes[wish]).mean()))


def to_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).movedim(-1, 0).float() / 127.5 - 1

"""What the published code gave on tiny weights, kept with the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from pixnerd_plugin.checkpoints.architecture import infer_architecture
from pixnerd_plugin.checkpoints.layouts.published import from_published
from pixnerd_plugin.registry import MODELS

DATA = Path(__file__).parents[2] / 'tests' / 'data'
GOLDENS = ('c2i_tiny', 't2i_tiny')


def golden_run(name: str, device: str) -> tuple[nn.Module, list[Tensor], dict[str, Any], Tensor]:
    """A network with golden weights, what it is called with, and the velocity it should give."""
    tensors = {key: tensor.to(device) for key, tensor in load_file(DATA / f'{name}.safetensors').items()}
    prefix = 'state_dict.'
    weights = from_published({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    net = MODELS.build(infer_architecture({key: tuple(t.shape) for key, t in weights.items()})).to(device).eval()
    net.load_state_dict(weights)
    if name == 'c2i_tiny':
        return net, [tensors['x'], tensors['t'], tensors['y']], {}, tensors['v']
    arguments = [tensors['x.128x128'], tensors['t'], tensors['text_embeds']]
    return net, arguments, dict(token_grid=(4, 4)), tensors['v.128x128']

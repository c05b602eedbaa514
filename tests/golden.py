"""Inputs and outputs of the published implementation on tiny weights (tests/data), and how close we must come."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from pixnerd_plugin.checkpoints.architecture import infer_architecture
from pixnerd_plugin.checkpoints.layouts.published import from_published
from pixnerd_plugin.registry import MODELS

DATA = Path(__file__).parent / 'data'


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def read(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f'{name}.safetensors')


def network(name: str) -> nn.Module:
    """The network whose weights a golden file holds."""
    prefix = 'state_dict.'
    tensors = {key.removeprefix(prefix): t for key, t in read(name).items() if key.startswith(prefix)}
    ours = from_published(tensors)
    net = MODELS.build(infer_architecture({key: tuple(t.shape) for key, t in ours.items()}))
    net.load_state_dict(ours)
    return net

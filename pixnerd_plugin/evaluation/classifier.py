"""A small classifier of the training set's own classes, to score small pictures, and as a teacher on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.formats.lazy import Tensors, require_finite
from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.safetensors_file import open_safetensors
from pixnerd_plugin.formats.schema import integer, naming, number, sequence, text
from pixnerd_plugin.formats.text_file import parse_table
from pixnerd_plugin.models.frozen import FrozenModel
from pixnerd_plugin.registry import MODELS

from .features import FeatureExtractor, Features

METADATA_KEY = 'pixnerd_classifier'

_DESCRIPTION = dict(
    class_names=sequence(text(1000), 1, 10**5), size=sequence(integer(4, 2**12), 2, 2), accuracy=number(0, 1)
)


class SmallConvNet(nn.Module):
    """Convolutions with batch normalisation, the mean over the picture, and a linear layer: 0.2 M parameters."""

    def __init__(self, num_classes: int, widths: tuple[int, int, int] = (32, 64, 96)):
        super().__init__()
        channels = [3, widths[0], widths[1], widths[2], widths[2]]
        layers: list[nn.Module] = []
        for index, stride in enumerate((2, 1, 2, 1)):
            layers += [nn.ReLU(inplace=True)] if index else []
            layers += [
                nn.Conv2d(channels[index], channels[index + 1], 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(channels[index + 1]),
            ]
        self.layers = nn.Sequential(*layers)
        self.dim = channels[-1]
        self.fc = nn.Linear(self.dim, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, 3, H, W)`` in [-1, 1] to maps ``(B, D, H/4, W/4)``, their rectified mean ``(B, D)`` and logits."""
        maps = self.layers(images)
        pool = F.relu(maps).mean((2, 3))
        return maps, pool, self.fc(pool)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    steps: int = 2000,
    batch_size: int = 64,
    flip: bool = False,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> SmallConvNet:
    """Train on uint8 ``images (N, 3, H, W)``; call ``callback`` with each step and its loss.

    ``labels`` are classes ``(N,)``, or, where several apply to a picture, their shares ``(N, num_classes)``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SmallConvNet(num_classes).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        for step in range(steps):
            index = torch.randint(len(images), (batch_size,))
            batch = images[index].float() / 127.5 - 1
            if flip:
                batch = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.5, batch.flip(-1), batch)
            loss = F.cross_entropy(net(batch)[2], labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if callback is not None:
                callback(step, loss.item())
    return net.eval()


@torch.no_grad()
def accuracy(net: SmallConvNet, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 ``images (N, 3, H, W)`` that are classified as their label."""
    chunks = zip(images.split(500), labels.split(500), strict=True)
    right = [(net(batch.float() / 127.5 - 1)[2].argmax(1) == truth) for batch, truth in chunks]
    return torch.cat(right).float().mean().item()


def save_classifier(net: SmallConvNet, path: str | Path, **description: Any) -> None:
    """Write the weights, with ``description`` (``class_names``, ``size``, ``accuracy``), as safetensors."""
    with atomic_path(path) as temporary:
        save_file(net.state_dict(), temporary, {METADATA_KEY: json.dumps(description)})


def read_description(path: str | Path) -> dict[str, Any]:
    """The description that :func:`save_classifier` wrote with the weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a classifier, or damaged.
    """
    return _open(path)[0]


def _open(path: str | Path) -> tuple[dict[str, Any], Tensors]:
    """The description and the tensors, checked against each other; no tensor is read yet."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f'classifier {path} does not exist; train one with tools/train_classifier.py, or for captioned '
            'digits with tools/demo_t2i.py prepare'
        )
    require_file(path, 'classifier')
    tensors, metadata = open_safetensors(path)
    if METADATA_KEY not in metadata:
        raise ValueError(f'{path} is no classifier of tools/train_classifier.py')
    with naming(f'{path} is no classifier of tools/train_classifier.py'):
        description = parse_table('its description', metadata[METADATA_KEY], _DESCRIPTION, ('class_names', 'size'))
        with torch.device('meta'):
            expected = SmallConvNet(len(description['class_names'])).state_dict()
        if differing := sorted(expected.keys() ^ tensors.keys()):
            raise ValueError(f'it {"lacks" if differing[0] in expected else "has"} a tensor {differing[0][:60]!r}')
        for name, tensor in expected.items():
            found = tensors[name]
            if (found.dtype, found.shape) != (tensor.dtype, tuple(tensor.shape)):
                raise ValueError(
                    f'{name} is {found.shape} of {found.dtype}, and {len(description["class_names"])} classes need '
                    f'{tuple(tensor.shape)} of {tensor.dtype}'
                )
    return description, tensors


def _load(path: str | Path) -> SmallConvNet:
    description, tensors = _open(path)
    net = SmallConvNet(len(description['class_names']))
    with naming(path):
        net.load_state_dict({name: require_finite(name, tensor.read()) for name, tensor in tensors.items()})
    return net


@MODELS.register_module()
class ClassifierFeatures(FeatureExtractor):
    """Features and logits of a classifier that ``tools/train_classifier.py`` trained on the model's own classes.

    Args:
        weights: file of the classifier.
        any_size: also take pictures of other sizes and shapes than it was trained on, at the same scale. Its features
            are means over the picture; how well it recognises their classes is then unknown.
    """

    name = 'classifier'

    def __init__(self, weights: str | Path, any_size: bool = False):
        self.any_size = any_size
        self.description = read_description(weights)
        self.num_classes = len(self.description['class_names'])
        self.network = FrozenModel(partial(_load, weights))
        self.dim = SmallConvNet(self.num_classes).dim

    def __call__(self, images: Tensor) -> Features:
        size = tuple(self.description['size'])
        if images.shape[2:] != size and not self.any_size:
            height, width = images.shape[2:]
            raise ValueError(
                f'the classifier was trained on {size[0]}x{size[1]} pictures, and these are {height}x{width}'
            )
        _, pool, logits = self.network(images.to(self.network.device).float() / 127.5 - 1)
        return Features(pool, logits=logits)


@MODELS.register_module()
class ClassifierTeacher:
    """The classifier as a teacher for representation alignment, where a DINOv2 is too large.

    Its last feature maps give one token for each patch of the student.

    Args:
        weights: file of the classifier.
        patch_size: side of the student's patch in pixels.
    """

    def __init__(self, weights: str | Path, patch_size: int = 8):
        self.patch_size = patch_size
        read_description(weights)
        self.encoder = FrozenModel(partial(_load, weights))

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [-1, 1] to tokens ``(B, H/patch_size · W/patch_size, D)``, row-major."""
        self.encoder.to(images.device)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        maps = self.encoder(images.float())[0]
        return F.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)

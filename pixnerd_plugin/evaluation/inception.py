"""The Inception of FID: torch-fidelity's port of TensorFlow's network, with ADM's spatial features."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.models.frozen import FrozenModel
from pixnerd_plugin.registry import MODELS

from .features import FeatureExtractor, Features

WEIGHTS = 'pt_inception-2015-12-05-6726825d.pth'
MAX_BYTES = 2**28  # it has 95 MB


@MODELS.register_module()
class InceptionFeatures(FeatureExtractor):
    """The features in which papers measure FID, sFID, IS, precision and recall.

    ``pool`` is the pooling layer of width 2048. ``spatial`` is the first 7 channels of ``Mixed_6d`` (TensorFlow's
    ``mixed_6/conv``), flattened by height, width and channel. ``logits`` have no bias, as in ADM.

    Args:
        weights: local file with the weights of 2015-12-05 in PyTorch layout; nothing is downloaded.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it holds something else, or torch-fidelity is not installed.
    """

    name = 'Inception'
    dim = 2048

    def __init__(self, weights: str | Path):
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f'Inception weights {weights} do not exist: get {WEIGHTS} (release v0.2.0 of torch-fidelity has it as '
                'weights-inception-2015-12-05-6726825d.pth) and name it by PIXNERD_INCEPTION'
            )
        if (size := Path(weights).stat().st_size) > MAX_BYTES:
            raise ValueError(f'{weights} has {size} bytes, and is not {WEIGHTS}')
        import_network()
        self.network = FrozenModel(partial(_load, weights))

    def __call__(self, images: Tensor) -> Features:
        spatial: list[Tensor] = []
        hook = self.network.module.Mixed_6d.register_forward_hook(lambda module, inputs, maps: spatial.append(maps))
        try:
            pool, logits = self.network(images.to(self.network.device))
        finally:
            hook.remove()
        return Features(pool, spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1).float(), logits)


def import_network() -> ModuleType:
    """Import torch-fidelity's module of the network without its package, which needs a working torchvision.

    Raises:
        ValueError: if torch-fidelity is not installed.
    """
    if 'torch_fidelity' in sys.modules:
        return importlib.import_module('torch_fidelity.feature_extractor_inceptionv3')
    spec = importlib.util.find_spec('torch_fidelity')
    if spec is None:
        raise ValueError(
            'Inception features need torch-fidelity: pip install --no-deps torch-fidelity (what it depends on beyond '
            'torch is not needed), or choose another feature_extractor'
        )
    # The package's __init__ imports torchvision. An empty package with the same path finds the modules without it.
    package = ModuleType('torch_fidelity')
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules['torch_fidelity'] = package
    try:
        return importlib.import_module('torch_fidelity.feature_extractor_inceptionv3')
    finally:
        for name in [name for name in sys.modules if name.split('.')[0] == 'torch_fidelity']:
            del sys.modules[name]


def _load(weights: str | Path) -> nn.Module:
    try:
        state = torch.load(weights, map_location='cpu', weights_only=True)
    # What a malformed pickle makes of torch's unpickler, a machine with a stack, is any error there is.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{weights} is damaged or not {WEIGHTS}: {reason}') from None
    # torch-fidelity does not load with weights_only, so it gets a copy of what was loaded with it.
    clean = io.BytesIO()
    torch.save(state, clean)
    clean.seek(0)
    network: Any = import_network().FeatureExtractorInceptionV3
    try:
        return network('inception', ['2048', 'logits_unbiased'], feature_extractor_weights_path=clean)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'{weights} is not {WEIGHTS}: {str(error).strip().splitlines()[0]}') from None

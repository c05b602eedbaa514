"""A feature extractor of a user's own, and files to read."""

import numpy as np
import torch
from torch import nn

from pixnerd_plugin.evaluation import FeatureExtractor, Features
from pixnerd_plugin.models.frozen import FrozenModel
from pixnerd_plugin.registry import MODELS


@MODELS.register_module(force=True)
class TinyFeatures(FeatureExtractor):
    """The mean of each channel in each quarter: 12 features, and the upper left pixels as spatial ones."""

    dim = 12

    def __init__(self, name='tiny'):
        self.name = name
        self.network = FrozenModel(lambda: nn.AdaptiveAvgPool2d(2))

    def __call__(self, images):
        pool = self.network(images.float()).flatten(1) / 255
        return Features(pool, images[:, :, :1, :2].flatten(1).float() / 255, pool[:, :5] * 10)


def pictures(num, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), np.uint8)


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def statistics(images):
    features = TinyFeatures()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    arrays = dict(mu=features.pool, mu_s=features.spatial)
    sigmas = dict(sigma=np.cov(features.pool, rowvar=False), sigma_s=np.cov(features.spatial, rowvar=False))
    return {name: values.double().numpy().mean(0) for name, values in arrays.items()} | sigmas

"""Sample quality during training: a metric for the engine's ValidationLoop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric
from torch import Tensor

from pixnerd_plugin.registry import METRICS, MODELS, build

from .features import FeatureExtractor
from .metrics import Statistics, frechet_distance


@METRICS.register_module()
class FrechetDistance(BaseMetric):
    """Fréchet distance between samples and held-out pictures, and its floor.

    Of every two pictures, one has a sample, drawn from its condition. ``frechet_distance`` compares the samples with
    the other pictures. ``frechet_floor`` compares the pictures that have one with the others: it is what samples as
    good as real pictures would get.

    Args:
        feature_extractor: a :class:`~.features.FeatureExtractor` or a dict to build it from. Half of the held-out
            pictures must be more than its features have dimensions.
    """

    needs_samples = True

    def __init__(self, feature_extractor: FeatureExtractor | dict[str, Any]):
        super().__init__()
        self.extractor: FeatureExtractor = build(MODELS, feature_extractor)
        self._known: dict[int, Tensor] = {}

    def names(self, model: Any) -> list[str]:
        return ['frechet_distance', 'frechet_floor']

    def prepare(self, number: int) -> None:
        """Check, before training, that ``number`` pictures are enough.

        Raises:
            ValueError: if they are not; the message names the minimum.
        """
        least = 2 * (self.extractor.dim + 1)
        if number < least:
            raise ValueError(
                f'val_dataloader has {number} pictures, and FrechetDistance in the {self.extractor.dim} '
                f'{self.extractor.name} features needs at least {least}: each half more than there are features'
            )
        self.extractor.to(get_device())

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        # Held-out pictures are the same each time.
        new = [entry for entry in data_samples if entry['number'] not in self._known]
        for entry, real in zip(new, self._features([entry['picture'] for entry in new]), strict=True):
            self._known[entry['number']] = real
        drawn = [entry for entry in data_samples if 'sample' in entry]
        samples = dict(
            zip(
                [entry['number'] for entry in drawn],
                self._features([entry['sample'] for entry in drawn]),
                strict=True,
            )
        )
        for number in (entry['number'] for entry in data_samples):
            self.results.append(dict(number=number, real=self._known[number], sample=samples.get(number)))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        others = Statistics.of(torch.stack([r['real'] for r in results if r['sample'] is None]))
        real, samples = (
            Statistics.of(torch.stack([r[kind] for r in results if r['sample'] is not None]))
            for kind in ('real', 'sample')
        )
        return dict(frechet_distance=frechet_distance(samples, others), frechet_floor=frechet_distance(real, others))

    def _features(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        if not pictures:
            return []
        return list(self.extractor(torch.stack(list(pictures))).pool.float().cpu())

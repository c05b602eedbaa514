"""Image quality from features, as ADM computes it (Dhariwal and Nichol, 2021); all in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096


@dataclass
class Statistics:
    """Mean ``(D,)`` and covariance ``(D, D)`` of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """The statistics of ``features (N, D)``, with the unbiased covariance.

        Raises:
            ValueError: if ``N <= D``: the covariance is then singular, and a distance says nothing about the pictures.
        """
        number, dim = features.shape
        if number <= dim:
            raise ValueError(
                f'{number} pictures cannot give a Fréchet distance in {dim} features: at least {dim + 1} are needed '
                '(papers use 50,000)'
            )
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (number - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``, the squared Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of ``S_a^(1/2) S_b S_a^(1/2)``, which is symmetric.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.covariance @ root)
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return (distance - 2 * product.clamp_min(0).sqrt().sum()).item()


def inception_score(logits: Tensor, split_size: int = 5000) -> float:
    """Mean over splits, in the given order, of ``exp(mean KL(p(y|x) || p(y)))`` from ``logits (N, K)``."""
    scores = []
    for part in logits.double().split(split_size):
        log_p = part.log_softmax(1)
        marginal = log_p.exp().mean(0)
        # As with xlogy, a class that never occurs contributes 0.
        divergence = (log_p.exp() * (log_p - marginal.clamp_min(1e-300).log())).sum(1)
        scores.append(divergence.mean().exp())
    return torch.stack(scores).mean().item()


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019) of ``samples (N, D)`` against ``reference (M, D)``.

    Around each reference picture lies a ball that reaches its ``k``-th neighbour among the references. Precision is the
    share of samples inside any of them; recall is the same with samples and references exchanged.

    Raises:
        ValueError: if either has at most ``k`` pictures.
    """
    for name, features in (('samples', samples), ('reference pictures', reference)):
        if len(features) <= k:
            raise ValueError(f'{len(features)} {name} do not have {k} neighbours each; at least {k + 1} are needed')
    samples, reference = samples.double(), reference.double()
    return _covered(samples, reference, _radii(reference, k)), _covered(reference, samples, _radii(samples, k))


def _radii(features: Tensor, k: int) -> Tensor:
    """Distance of each row to its ``k``-th nearest other row."""
    # k + 1, because the nearest row is the row itself.
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1, dim=1).values for part in features.split(CHUNK)])


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of the points within ``radii`` of any centre."""
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(CHUNK)]
    return torch.cat(inside).double().mean().item()

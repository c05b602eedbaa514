"""The metrics against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch

from pixnerd_plugin.evaluation.metrics import Statistics, frechet_distance, inception_score, precision_recall


def gaussian(seed, dim=6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return Statistics(torch.randn(dim, generator=generator, dtype=torch.float64), root @ root.T)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    # Diagonal in one basis: |m1 - m2|^2 + sum (s1 - s2)^2.
    basis, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    s1, s2 = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 0.5, 2.0, 0.0, 7.0]).double()
    m1, m2 = torch.randn(2, 5, dtype=torch.float64)
    a, b = (Statistics(m, basis @ torch.diag(s**2) @ basis.T) for m, s in ((m1, s1), (m2, s2)))
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    # A zero eigenvalue comes out as 1e-15 or so, and its root as 3e-8.
    assert frechet_distance(a, b) == pytest.approx(expected.item(), abs=1e-5)


def test_frechet_distance_is_symmetric_zero_on_itself_and_equals_the_eigenvalue_formula():
    a, b = gaussian(0), gaussian(1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    roots = np.sqrt(np.linalg.eigvals((a.covariance @ b.covariance).numpy()).astype(complex)).real.sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)


def test_statistics_are_numpys_and_samples_of_a_gaussian_find_it():
    features = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4]) + 5
    found = Statistics.of(features)
    np.testing.assert_allclose(found.mean, features.double().numpy().mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features.double().numpy(), rowvar=False))
    truth = Statistics(torch.full((4,), 5.0).double(), torch.diag(torch.tensor([1.0, 4, 9, 16])).double())
    assert frechet_distance(found, truth) < 0.01


def test_too_few_pictures_for_a_distance_are_refused_with_the_minimum():
    with pytest.raises(ValueError, match=r'4 pictures .* 4 features: at least 5'):
        Statistics.of(torch.randn(4, 4))


def test_inception_score_is_one_for_equal_and_the_number_of_classes_for_certain_different_predictions():
    assert inception_score(torch.randn(1, 10).expand(50, 10)) == pytest.approx(1)
    certain = torch.eye(10).repeat(5, 1) * 1000
    assert inception_score(certain) == pytest.approx(10)
    # Splits are taken in order: in each split of 10 there are all classes, in each of 5 only five.
    assert inception_score(certain, split_size=5) == pytest.approx(5)


def test_inception_score_equals_its_definition():
    logits = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    scores = []
    for part in logits.double().numpy()[:20], logits.double().numpy()[20:]:
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        scores.append(math.exp(np.mean([(row * np.log(row / p.mean(0))).sum() for row in p])))
    assert inception_score(logits, 20) == pytest.approx(np.mean(scores))


def brute_force(samples, reference, k):
    def covered(points, centres):
        hits = 0
        for point in points:
            for i, centre in enumerate(centres):
                radius = sorted(np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i)[k - 1]
                if np.linalg.norm(point - centre) <= radius:
                    hits += 1
                    break
        return hits / len(points)

    return covered(samples, reference), covered(reference, samples)


@pytest.mark.parametrize('k', [1, 3])
def test_precision_and_recall_equal_brute_force(k):
    generator = torch.Generator().manual_seed(k)
    samples = torch.randn(40, 3, generator=generator)
    reference = torch.randn(25, 3, generator=generator) + 1.5
    expected = brute_force(samples.double().numpy(), reference.double().numpy(), k)
    assert 0 < min(expected) < max(expected) < 1
    assert precision_recall(samples, reference, k) == pytest.approx(expected)


def test_precision_and_recall_at_the_extremes():
    reference = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert precision_recall(reference, reference) == (1, 1)
    assert precision_recall(reference + 100, reference) == (0, 0)
    # One mode of two: nothing false is drawn, and half is missed.
    assert precision_recall(reference[:10], torch.cat((reference[:10], reference[:10] + 100))) == (1, 0.5)
    with pytest.raises(ValueError, match='3 samples do not have 3 neighbours each; at least 4'):
        precision_recall(reference[:3], reference)

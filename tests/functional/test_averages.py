import numpy as np
import pytest

from pixnerd_plugin.functional.averages import combination, decay, exponent


@pytest.mark.parametrize('sigma_rel', [0.01, 0.05, 0.1, 0.25])
def test_a_profile_has_the_width_it_is_named_by(sigma_rel):
    g = exponent(sigma_rel)
    steps = (np.arange(200_000) + 0.5) / 200_000
    profile = steps**g / (steps**g).sum()
    mean = (profile * steps).sum()
    assert (profile * (steps - mean) ** 2).sum() ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)


def test_the_updates_make_that_profile():
    g, weights = exponent(0.1), np.zeros(500)
    for step in range(1, 501):
        weights *= decay(step, g)
        weights[step - 1] = 1 - decay(step, g)
    steps = np.arange(1, 501)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(
        weights[50:], ((steps / 500) ** (g + 1) - ((steps - 1) / 500) ** (g + 1))[50:], atol=2e-9
    )


def test_a_stored_profile_is_found_as_itself_and_what_is_far_off_is_said():
    stored = [(t, exponent(s)) for t in range(50, 501, 50) for s in (0.05, 0.1)]
    factors, error = combination(stored, stored[7])
    assert error < 1e-4
    assert factors == pytest.approx([float(i == 7) for i in range(20)], abs=1e-3)
    factors, error = combination(stored, (500, exponent(0.07)))
    assert error < 0.01
    assert sum(factors) == pytest.approx(1, abs=1e-3)
    assert combination(stored, (500, exponent(0.005)))[1] > 0.5


@pytest.mark.parametrize('sigma_rel', [0, -0.1, 0.3, float('nan')])
def test_a_length_that_no_profile_has_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=r'must be above 0 and below 0\.289'):
        exponent(sigma_rel)

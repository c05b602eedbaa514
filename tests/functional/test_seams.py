import math

import pytest
import torch

from pixnerd_plugin.functional.seams import border_steps, seam_ratio


def picture(line):
    """A picture ``(1, 1, n, n)`` that is the mean of the same line along both axes."""
    line = torch.as_tensor(line, dtype=torch.float32)
    return (line[:, None] + line)[None, None] / 2


def test_a_ramp_has_no_seams():
    assert seam_ratio(picture(torch.linspace(-1, 1, 24)), (3, 4)) == pytest.approx(1, rel=1e-5)


def test_stairs_of_patches_step_at_borders_only():
    stairs = picture(torch.tensor([-0.9, -0.3, 0.3, 0.9]).repeat_interleave(6))
    assert border_steps(stairs, (4, 4)) == pytest.approx((0.3, 0))
    assert seam_ratio(stairs, (4, 4)) == math.inf
    assert math.isnan(seam_ratio(torch.zeros(1, 3, 8, 8), (2, 2)))


@pytest.mark.parametrize('scale', [2, 4, 8])
def test_a_step_on_top_of_a_ramp_is_found_at_any_scale(scale):
    # 4 patches of 8 base pixels; the ramp climbs 0.02 a base pixel, and 0.05 at each border.
    index = torch.arange(32 * scale)
    line = -0.9 + index * 0.02 / scale + (index // (8 * scale)) * 0.05
    assert seam_ratio(picture(line), (4, 4)) == pytest.approx(1 + 0.05 * scale / 0.02, rel=1e-3)


def test_sides_that_are_no_multiple_have_their_borders_where_the_fields_change():
    # 10 pixels over 3 patches: centres 0.5, 1.5, ... in patches of 10/3 pixels; patches begin at pixels 3 and 7.
    line = torch.tensor([0.0] * 3 + [0.4] * 4 + [0.8] * 3)
    assert border_steps(picture(line), (3, 3)) == pytest.approx((0.2, 0))


def test_values_beyond_the_range_of_a_picture_do_not_count():
    line = torch.tensor([1.0, 1.0, 5.0, 5.0])
    assert border_steps(picture(line * 2), (2, 2)) == (0, 0)


@pytest.mark.parametrize('grid', [(1, 4), (4, 8), (4, 16)])
def test_grids_without_borders_or_insides_are_refused(grid):
    with pytest.raises(ValueError, match='patches along 8 pixels'):
        seam_ratio(torch.zeros(1, 3, 8, 8), grid)

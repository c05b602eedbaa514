"""Where tokens stand."""

import pytest
import torch

from pixnerd_plugin.functional.positions import POSITION_RULES, token_positions

# Of a grid of two rows and four columns: x of the first row, y of the first column.
EXPECTED = dict(
    fixed_span=([0, 16 / 3, 32 / 3, 16], [0, 16]),
    swapped_grid=([0, 2 / 3, 4 / 3, 2], [0, 4]),
    grid=([0, 4 / 3, 8 / 3, 4], [0, 2]),
    fixed_step=([0, 5, 10, 15], [0, 5]),
)


@pytest.mark.parametrize('rule', POSITION_RULES)
def test_each_rule_places_rows_and_columns(rule):
    x, y = (position.view(2, 4) for position in token_positions((2, 4), rule))
    columns, rows = (torch.tensor(values, dtype=torch.float) for values in EXPECTED[rule])
    torch.testing.assert_close(x, columns.expand(2, 4))
    torch.testing.assert_close(y, rows[:, None].expand(2, 4))


def test_under_fixed_step_a_token_stands_where_it_does_in_a_smaller_picture():
    wide, square = (token_positions(grid, 'fixed_step') for grid in ((4, 8), (4, 4)))
    for one, other in zip(wide, square, strict=True):
        assert torch.equal(one.view(4, 8)[:, :4], other.view(4, 4))

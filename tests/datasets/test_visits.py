import pickle
import random

import numpy as np
import torch

from pixnerd_plugin.datasets.visits import Visit, seeded


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_a_visit_is_an_int_that_survives_pickling():
    visit = pickle.loads(pickle.dumps(Visit(7, (0, 3))))
    assert visit == 7
    assert [10, 11, 12, 13, 14, 15, 16, 17][visit] == 17
    assert visit.entropy == (0, 3)


def test_seeded_draws_depend_on_the_entropy_alone():
    drawn = []
    for entropy in [(0, 1), (0, 1), (0, 2), (1, 1)]:
        with seeded(entropy):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_seeded_leaves_the_streams_as_they_were():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw(), draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = draw()
    with seeded((5,)):
        draw()
    assert (first, draw()) == expected

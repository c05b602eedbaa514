import random

import numpy as np
import torch

from pixnerd_plugin.engine.loops import seed_everything


def draws(*entropy):
    seed_everything(*entropy)
    return torch.randn(()).item(), np.random.rand(), random.random()


def test_every_seed_rank_and_iteration_has_streams_of_its_own():
    seen = {draw for seed in range(3) for rank in range(3) for i in range(20) for draw in draws(seed, rank, i)}
    assert len(seen) == 3 * 3 * 20 * 3


def test_the_same_numbers_give_the_same_streams():
    assert draws(1, 2, 3) == draws(1, 2, 3)

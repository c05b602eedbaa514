import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pixnerd_plugin.engine import workers
from pixnerd_plugin.engine.loops import ResumableTrainLoop, seed_everything


def draws(*entropy):
    seed_everything(*entropy)
    return torch.randn(()).item(), np.random.rand(), random.random()


def test_every_seed_rank_and_iteration_has_streams_of_its_own():
    seen = {draw for seed in range(3) for rank in range(3) for i in range(20) for draw in draws(seed, rank, i)}
    assert len(seen) == 3 * 3 * 20 * 3


def test_the_same_numbers_give_the_same_streams():
    assert draws(1, 2, 3) == draws(1, 2, 3)


class Batches:
    """Raises errors in turn, then gives a batch; one worker is dead or all live."""

    def __init__(self, errors, alive):
        self.errors, self._workers = list(errors), [SimpleNamespace(is_alive=lambda: alive)]

    def __next__(self):
        if self.errors:
            raise self.errors.pop(0)
        return 'batch'


class Loop(ResumableTrainLoop):
    def __init__(self, errors, alive=False):
        self._batches, self._iter, self.max_iters, self.starts = Batches(errors, alive), 5, 9, 0
        self._runner = SimpleNamespace(logger=SimpleNamespace(error=print))

    def _start_loading(self):
        self.starts += 1


BROKEN = [
    ConnectionResetError(104, 'Connection reset by peer'),
    ConnectionRefusedError(111, 'Connection refused'),
    FileNotFoundError(2, 'No such file or directory'),
    BrokenPipeError(32, 'Broken pipe'),
    EOFError(),
    pickle.UnpicklingError('pickle data was truncated'),
    RuntimeError('received 0 items of ancdata'),
    RuntimeError('Caught ConnectionResetError in pin memory thread for device 0.'),
    RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed.'),
]


@pytest.mark.parametrize('error', BROKEN, ids=lambda error: type(error).__name__)
def test_whatever_the_death_of_a_worker_raises_it_is_replaced(error, capsys):
    loop = Loop([error])
    assert (loop._next(), loop.starts) == ('batch', 1)
    assert 'DATA WORKER DIED at iteration 5' in capsys.readouterr().out


def test_workers_that_die_again_and_again_are_an_error():
    loop = Loop([EOFError()] * 4)
    with pytest.raises(ValueError, match='died 4 times in a row at iteration 5'):
        loop._next()


@pytest.mark.parametrize(
    ('error', 'alive'),
    [
        (ConnectionResetError('the disk of the data'), True),
        (OSError('Caught OSError in DataLoader worker process 0.\nno such picture'), False),
        (RuntimeError('out of memory'), True),
        (KeyError('label'), False),
    ],
)
def test_an_error_of_the_data_is_no_death(error, alive, monkeypatch):
    monkeypatch.setattr(workers, '_SECONDS_TO_DIE', 0.05)
    with pytest.raises(type(error)):
        Loop([error], alive)._next()

"""What a user sees of damaged data."""

import re
import sys

import pytest
from PIL import Image

from pixnerd_plugin.datasets.faults import Tally
from tests.training import CONFIG, run_tool


@pytest.mark.parametrize(
    ('rank', 'line'), [('0', r'.* - mmengine - WARNING - a\.jpg is cut'), ('1', r'\[rank 1\] a\.jpg is cut')]
)
def test_a_fault_is_one_line_from_every_rank(rank, line, tmp_path):
    program = tmp_path / 'program.py'
    program.write_text("from pixnerd_plugin.datasets.base import log_fault\nlog_fault('a.jpg is cut')\n")
    done = run_tool(sys.executable, program, RANK=rank)
    (said,) = (done.stdout + done.stderr).strip().splitlines()
    assert re.fullmatch(line, said)
    assert 'logger.py' not in said


def test_too_many_damaged_pictures_end_a_run_in_one_line(tmp_path):
    (tmp_path / 'data/a').mkdir(parents=True)
    for index in range(4):
        Image.new('RGB', (16, 16)).save(tmp_path / f'data/a/{index}.png')
    (tmp_path / 'data/a/2.png').write_bytes(b'not a picture')
    config = tmp_path / 'config.py'
    folder = dict(_delete_=True, type='ImageFolder', data_root=str(tmp_path / 'data'), max_damaged=0)
    folder['pipeline'] = [dict(type='LoadRGB'), dict(type='PackInputs')]
    # In a worker, whose whole traceback comes with the error.
    config.write_text(f'_base_ = {str(CONFIG)!r}\ntrain_dataloader = dict(num_workers=1, dataset={folder!r})\n')
    done = run_tool(sys.executable, 'tools/train.py', config, '--work-dir', tmp_path / 'work')
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: 1 damaged pictures among 4, more than max_damaged=0 allows; the last is ')
    assert '2.png' in last


@pytest.mark.parametrize('size', [1, 12, 4096, 5000, 100_000])
def test_a_tally_counts_every_index_once(size):
    tally = Tally(size)
    indices = {0, size - 1, size // 2, *range(0, size, 97)}
    assert all(tally.add(index) for index in indices)
    assert not any(tally.add(index) for index in indices)
    assert len(tally) == len(indices)


@pytest.mark.parametrize(('size', 'other'), [(12, 5), (100_000, 5)])
def test_a_tally_loses_nothing_if_another_worker_adds_in_the_same_instant(size, other):
    """Two workers once read one byte, and the second to write took back what the first had added."""
    tally = Tally(size)

    class Interrupted:
        def __getitem__(self, byte):
            value = int(bits[byte])
            tally._bits = bits
            tally.add(other)  # after the first one has read, before it writes
            return value

        def __setitem__(self, byte, value):
            bits[byte] = value

    bits, tally._bits = tally._bits, Interrupted()
    assert tally.add(4)
    assert len(tally) == 2
    assert not tally.add(other)

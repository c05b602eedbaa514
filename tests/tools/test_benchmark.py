"""tools/benchmark.py as a user calls it."""

import sys
from pathlib import Path

import pytest

from tests.training import run_tool

pytestmark = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
TINY = ['--rounds', '1', '--size', '32']


def benchmark(*arguments: str):
    return run_tool(sys.executable, 'tools/benchmark.py', *arguments)


def rows(output: str) -> list[list[str]]:
    table = [line.strip('| ').split(' | ') for line in output.splitlines() if line.startswith('| ')]
    return table[1:]


def test_resolution_prints_a_row_a_size():
    done = benchmark('resolution', '--head', 'small', '--sizes', '128', '256')
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in rows(done.stdout)] == ['128x128', '256x256']
    assert float(rows(done.stdout)[0][4]) == 0


def test_forward_prints_a_row_a_batch_size():
    done = benchmark('forward', '--model', 'tiny-text', '--batch', '1', '2', *TINY)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in rows(done.stdout)] == ['1', '2']


def test_train_times_each_variant_and_its_memory():
    done = benchmark('train', '--model', 'tiny', '--variants', 'ours', 'checkpoint', 'accumulate-2', *TINY)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in rows(done.stdout)] == ['ours', 'checkpoint', 'accumulate-2']
    assert all(float(row[3]) > 0 for row in rows(done.stdout))


def test_table_has_a_row_a_network():
    done = benchmark('table', '--models', 'tiny', '--steps', '2', '--no-train', *TINY)
    assert done.returncode == 0, done.stderr
    assert [row[:2] for row in rows(done.stdout)] == [['tiny', 'ours']]


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    done = benchmark('forward', '--model', 'tiny', '--reference', str(tmp_path), *TINY)
    assert done.returncode != 0
    assert str(tmp_path) in done.stderr
    assert 'Traceback' not in done.stderr

"""tools/benchmark.py as a user calls it."""

import sys
from pathlib import Path

import pytest

from tests.training import run_tool


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
def test_resolution_prints_a_row_a_size():
    arguments = ['tools/benchmark.py', 'resolution', '--head', 'small', '--sizes', '128', '256']
    done = run_tool(sys.executable, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [line.split(' | ') for line in done.stdout.splitlines() if 'x' in line.split(' | ')[0]]
    assert [row[0] for row in rows] == ['| 128x128', '| 256x256']
    assert float(rows[0][4]) == 0

"""The forked Python that other tests run tools with behaves as Python does, and its processes end as they should."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training import run_tool, start_tool

PROGRAM = """
import os, signal, sys, time
what = sys.argv[1]
print(os.getcwd(), os.environ['GIVEN'])
if what == 'fails':
    raise ValueError('this way')
if what == 'ends':
    sys.exit('one line')
if what == 'dies':
    os.kill(os.getpid(), signal.SIGKILL)
if what == 'saves':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print(os.getpid(), flush=True)
time.sleep(1000 if what in ('saves', 'waits') else 0)
"""


@pytest.mark.parametrize(
    ('what', 'code', 'error'),
    [('works', 0, ''), ('fails', 1, 'ValueError: this way'), ('ends', 1, 'one line'), ('dies', -signal.SIGKILL, '')],
)
def test_it_ends_as_python_does(tmp_path, what, code, error):
    script = tmp_path / 'script.py'
    script.write_text(PROGRAM)
    runs = [run_tool(sys.executable, script, what, fresh=fresh, GIVEN='here') for fresh in (False, True)]
    assert [run.returncode for run in runs] == [code, code]
    assert [run.stderr.strip().splitlines()[-1:] for run in runs] == [[error] if error else []] * 2
    assert runs[0].stdout.split()[:-1] == runs[1].stdout.split()[:-1]


@pytest.mark.parametrize(
    ('number', 'what', 'code'),
    [
        (signal.SIGTERM, 'saves', 75),
        (signal.SIGTERM, 'waits', -signal.SIGTERM),
        (signal.SIGKILL, 'waits', -signal.SIGKILL),
    ],
)
def test_signals_reach_the_process(number, what, code):
    command = [sys.executable, '-u', '-c', PROGRAM, what]
    with start_tool(*command, environment=dict(GIVEN='here'), stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    while Path('/proc', str(pid)).exists():
        time.sleep(0.01)

"""tests/run.py: what two processes report together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTCOMES = {
    'passes': 'def test(): pass',
    'many': 'import pytest\n@pytest.mark.parametrize("n", range(7))\ndef test(n): pass',
    'skips': 'import pytest\npytest.skip("why", allow_module_level=True)',
    'fails': 'def test(): assert [] == [1]',
    'errs': 'def test(unknown): pass',
    'dies': 'import os\ndef test(): os._exit(0)',
    'hangs': 'import os, time\ndef test():\n    open("PID", "w").write(str(os.getpid()))\n    time.sleep(1000)',
}


def start(folder, *names, minutes='5'):
    for name in names:
        (folder / f'test_{name}.py').write_text(OUTCOMES[name].replace('PID', str(folder / 'pid')))
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PIXNERD_TEST_MINUTES=minutes)
    command = [sys.executable, 'tests/run.py', '-p', 'tests.conftest', '-c', os.devnull, '--rootdir', folder, folder]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


@pytest.mark.parametrize(
    ('names', 'code', 'summary'),
    [
        (['passes', 'many', 'skips'], 0, '8 passed, 1 skipped in '),
        (['passes', 'many', 'fails'], 1, '1 failed, 8 passed in '),
        (['errs'], 1, '1 failed, 1 error in '),
        (['dies'], 1, '1 failed in '),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, list) else '',
)
def test_the_last_line_is_the_sum_and_nothing_that_went_wrong_is_lost(tmp_path, names, code, summary):
    run = start(tmp_path, *names)
    printed, _ = run.communicate(timeout=200)
    last = printed.splitlines()[-1]
    assert run.returncode == code, printed
    assert last.strip('= ').startswith(summary), printed
    assert last[0] == last[-1] == '='
    assert ('assert [] == [1]' in printed) == ('fails' in names)


@pytest.mark.parametrize('end', ['limit', 'Ctrl-C'])
def test_what_hangs_is_ended(tmp_path, end):
    run = start(tmp_path, 'hangs', minutes='0.05' if end == 'limit' else '5')
    if end == 'Ctrl-C':
        while not (tmp_path / 'pid').exists():
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 1
    assert re.match('=+ [12] failed', printed.splitlines()[-1]), printed
    pid = tmp_path / 'pid'
    assert not (pid.exists() and Path('/proc', pid.read_text()).exists())

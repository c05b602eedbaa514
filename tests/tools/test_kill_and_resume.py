import contextlib
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training import CONFIG, ROOT, run_tool, start_tool


def running(work_dir):
    """Processes that train in a folder."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if str(work_dir).encode() in path.read_bytes() else []
    return found


@pytest.mark.slow
def test_a_run_killed_at_random_ends_as_if_it_had_not_been(tmp_path):
    options = ['--processes', '1', '--kills', '2', '--iterations', '24', '--save-every', '3', '--batch-size', '4']
    command = [sys.executable, 'tools/analysis_tools/kill_and_resume.py', CONFIG, *options]
    command += ['--work-dir', tmp_path / 'proof']
    with start_tool(*command, stdout=subprocess.PIPE) as interrupted:
        assert any(line.startswith('kill 1:') for line in interrupted.stdout)
        log = tmp_path / 'proof/1_killed/output.txt'
        size = log.stat().st_size
        while interrupted.poll() is None and log.stat().st_size == size:  # until the next start
            time.sleep(0.02)
        interrupted.terminate()
    assert interrupted.returncode != 0
    assert not running(tmp_path / 'proof')

    done = run_tool(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    assert 'kill 1:' not in done.stdout
    assert 'killed 2 times: the same to the last bit' in done.stdout
    assert (tmp_path / 'proof/kill_and_resume.png').exists()


def test_no_earlier_log_is_taken_for_that_of_a_new_start(tmp_path):
    lines_after = runpy.run_path(str(ROOT / 'tools/analysis_tools/kill_and_resume.py'))['lines_after']
    logs = [tmp_path / start / 'vis_data/scalars.json' for start in ('20260101_000000', '20260101_000001')]
    assert lines_after(tmp_path, None) == 0
    for log in logs:
        log.parent.mkdir(parents=True)
        log.write_text('{}\n{}\n')
    assert [lines_after(tmp_path, before) for before in (None, *logs)] == [2, 2, 0]
    logs[1].rename(f'{logs[1]}.1')  # set aside by the new start, before it logs
    assert lines_after(tmp_path, logs[1]) == 0

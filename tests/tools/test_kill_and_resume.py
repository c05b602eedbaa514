import sys

import pytest

from tests.training import CONFIG, run_tool


@pytest.mark.slow
def test_a_run_killed_at_random_ends_as_if_it_had_not_been(tmp_path):
    options = ['--processes', '1', '--kills', '2', '--iterations', '24', '--save-every', '3', '--batch-size', '4']
    done = run_tool(
        sys.executable, 'tools/analysis_tools/kill_and_resume.py', CONFIG, *options, '--work-dir', tmp_path / 'proof'
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert 'killed 2 times: the same to the last bit' in done.stdout
    assert (tmp_path / 'proof/kill_and_resume.png').exists()

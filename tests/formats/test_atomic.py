import os
import subprocess
import sys

import pytest

from pixnerd_plugin.formats.atomic import atomic_path, remove_abandoned, remove_leftovers


def test_the_file_appears_whole_when_the_block_ends(tmp_path):
    target = tmp_path / 'new' / 'file.png'
    with atomic_path(target) as temporary:
        temporary.write_text('content')
        assert temporary.suffix == '.png'
        assert not target.exists()
    assert target.read_text() == 'content'
    assert list(target.parent.iterdir()) == [target]


def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path):
    target = tmp_path / 'file'
    target.write_text('old')

    def fail_half_way():
        with atomic_path(target) as temporary:
            temporary.write_text('half')
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    (tmp_path / '.tmp-123-iter_2.pth').touch()
    (tmp_path / 'iter_1.pth').touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['iter_1.pth']


def test_abandoned_files_are_those_of_processes_that_do_not_run(tmp_path):
    ended = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'], capture_output=True, check=True)
    mine, gone = os.getpid(), int(ended.stdout)
    for name in (
        f'.tmp-{mine}-a.pth',
        f'.tmp-{gone}-a.pth',
        f'.tmp-{gone}-b.pth',
        '.tmp-x-a.pth',
        '.tmp-9999999999-a.pth',
    ):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path / 'a.pth')
    assert {path.name for path in tmp_path.iterdir()} == {
        f'.tmp-{mine}-a.pth',
        f'.tmp-{gone}-b.pth',
        '.tmp-x-a.pth',
        '.tmp-9999999999-a.pth',
    }


FULL = """
import resource, sys
from pathlib import Path
from pixnerd_plugin.formats.atomic import atomic_path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_path(sys.argv[1]) as temporary, open(temporary, 'wb') as file:
        file.write(bytes(100_000))
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_told_with_the_files_name(tmp_path):
    target = tmp_path / 'a.pth'
    run = subprocess.run([sys.executable, '-c', FULL, target], capture_output=True, text=True, check=True)
    assert f"while writing: '{target}'" in run.stdout
    assert not any(tmp_path.iterdir())

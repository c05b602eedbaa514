import subprocess
import sys

import pytest
import torch

from pixnerd_plugin.engine import processes
from pixnerd_plugin.engine.processes import _rendezvous, fail_at_once


def test_without_a_group_of_processes_it_is_the_one_line_alone():
    with pytest.raises(SystemExit, match='error: in one line'), fail_at_once():
        raise ValueError('in one\nline')
    with pytest.raises(KeyError), fail_at_once():
        raise KeyError('a fault of the program')


@pytest.mark.parametrize(
    ('error', 'shown'),
    [
        ('ValueError("one line")', 'error: one line\n'),
        ('SystemExit("as it is")', 'as it is\n'),
        ('KeyError("k")', 'Traceback'),
    ],
)
def test_within_a_group_a_failure_ends_the_process_whatever_else_runs(error, shown):
    program = f"""
import threading, time, torch
from pixnerd_plugin.engine.processes import fail_at_once
torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
threading.Thread(target=time.sleep, args=(600,)).start()
with fail_at_once():
    raise {error}
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert shown in done.stderr


def test_each_start_of_the_launcher_has_addresses_of_its_own(monkeypatch):
    kept = torch.distributed.HashStore()
    monkeypatch.setattr(processes, 'rendezvous', lambda url: iter([(kept, 0, 1)]))
    first = _rendezvous()['store']
    first.set('address', 'of a process that is dead')
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert first.check(['address'])
    assert not _rendezvous()['store'].check(['address'])

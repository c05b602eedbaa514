import platform
import subprocess
import sys

import pytest
import torch

from pixnerd_plugin.cli import one_line_errors, parse_region, parse_size
from pixnerd_plugin.engine import processes
from pixnerd_plugin.engine.config import hide_broken_torchvision
from pixnerd_plugin.engine.processes import _rendezvous, fail_at_once
from pixnerd_plugin.engine.resume import find_checkpoint, require_checkpoint


@pytest.fixture
def work_dir(tmp_path):
    for step in (2, 4, 10):
        torch.save(dict(step=step), tmp_path / f'iter_{step}.pth')
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/iter_4.pth')
    return tmp_path


def test_the_last_checkpoint_is_found_even_when_the_folder_moved(work_dir):
    assert find_checkpoint(work_dir).name == 'iter_4.pth'


def test_a_damaged_checkpoint_gives_way_to_the_one_before(work_dir, capsys):
    last = work_dir / 'iter_4.pth'
    last.write_bytes(last.read_bytes()[:-50])
    assert find_checkpoint(work_dir).name == 'iter_2.pth'
    assert 'iter_4.pth is cut short' in capsys.readouterr().err
    with pytest.raises(ValueError, match='cut short'):
        require_checkpoint(last)


def test_a_flipped_bit_is_found_wherever_a_tensor_has_it(tmp_path):
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(weight=torch.arange(64.0)), path)
    whole = path.read_bytes()
    start = whole.index(torch.arange(64.0).numpy().tobytes())
    for at in (start, start + 100, start + 255):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='checksum'):
            require_checkpoint(path)


def test_without_a_pointer_the_newest_whole_checkpoint_counts(work_dir):
    (work_dir / 'last_checkpoint').unlink()
    assert find_checkpoint(work_dir).name == 'iter_10.pth'


def test_nothing_but_damaged_checkpoints_is_an_error_and_no_new_start(work_dir):
    for path in work_dir.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match='all 2 checkpoints'):
        find_checkpoint(work_dir)


def test_there_may_be_no_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('two\n  lines'), 'error: two lines'),
        (FileNotFoundError(2, 'No such file', 'a.txt'), "error: [Errno 2] No such file: 'a.txt'"),
        (
            ValueError('Caught ValueError in worker 0.\nTraceback\nValueError: size is 3'),
            'error: ValueError: size is 3',
        ),
    ],
)
def test_what_the_user_can_put_right_is_one_line(error, line):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    assert stop.value.code == line


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError('name')


def test_without_a_group_of_processes_failing_at_once_changes_nothing():
    with pytest.raises(ValueError, match='as before'), fail_at_once():
        raise ValueError('as before')


@pytest.mark.parametrize(
    ('error', 'shown'), [('SystemExit("error: one line")', 'error: one line'), ('KeyError("k")', 'Traceback')]
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


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='this is a matter of glibc')
def test_freed_memory_stays_with_the_process():
    program = """
import numpy as np
from pixnerd_plugin.memory import keep_freed_memory, memory
KEEP
for _ in range(3):
    block = np.ones(2**24)
    del block
print(memory('VmRSS')[0])
"""
    resident = [
        float(subprocess.check_output([sys.executable, '-c', program.replace('KEEP', call)], text=True))
        for call in ('', 'keep_freed_memory()')
    ]
    assert resident[1] > resident[0] + 100


def test_a_torchvision_that_fails_to_import_counts_as_absent(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    monkeypatch.delitem(sys.modules, 'torchvision')
    hide_broken_torchvision()
    with pytest.raises(ModuleNotFoundError):
        __import__('torchvision')
    hide_broken_torchvision()


def test_sizes_and_regions_are_read_or_refused():
    assert parse_size('512x768') == parse_size('512X768') == (512, 768)
    assert parse_size('64') == (64, 64)
    assert parse_region('0,1,20,30') == (0, 1, 20, 30)
    for parse, text in ((parse_size, '5k'), (parse_size, '0x8'), (parse_size, '8x8x8'), (parse_region, '1,2,3')):
        with pytest.raises(ValueError, match=text):
            parse(text)

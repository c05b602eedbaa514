"""The tool that checks a data set before training."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.training import run_tool


def png(seed=0, size=(24, 16)):
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, 'PNG')
    return encoded.getvalue()


MEMBERS = {
    'a/1.png': png(1, (16, 32)),
    'a/1.txt': b'one',
    'a/2.png': png(2, (32, 16)),
    'a/3.png': png(3)[:-30],
    'a/3.txt': b'three',
    'a/4.png': png(4, (16, 16)),
    'a/4.txt': 'café'.encode('latin-1'),
    'a/notes.mp4': b'film',
}


def check(*arguments):
    return run_tool(sys.executable, 'tools/check_data.py', *arguments, '--workers', '1')


@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_every_fault_is_counted_and_named(tmp_path, kind):
    data = tmp_path / 'data'
    for name, content in MEMBERS.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    if kind == 'shards':
        with tarfile.open(tmp_path / 'all.tar', 'w') as tar:
            tar.add(data, 'data')
        data = tmp_path / 'shards'
        data.mkdir()
        (tmp_path / 'all.tar').rename(data / 'all.tar')
    done = check(data, '--report', tmp_path / 'report.json', '--resolution', '24', '--multiple', '8')
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / 'report.json').read_text())
    for fault, place in (
        ('damaged picture', '3.png'),
        ('missing caption', '2.png'),
        ('unreadable caption', '4.png'),
    ):
        assert [place in where for where in report['faults'][fault]] == [True]
        assert f'{fault}: ' in done.stderr
        assert f'{fault}: 1' in done.stdout
    assert sorted(map(tuple, report['shapes'])) == [(16, 16), (16, 32), (32, 16)]
    assert '.mp4' in done.stdout + done.stderr
    assert '32x16: 1, 24x24: 1, 16x32: 1' in done.stdout
    assert 'smaller than their bucket' in done.stdout


def test_good_data_ends_with_0_and_nothing_to_check_in_one_line(tmp_path):
    for name in ('1.png', '2.png'):
        (tmp_path / name).write_bytes(png())
    done = check(tmp_path)
    assert done.returncode == 0
    assert '2 whole pictures' in done.stdout
    assert 'caption' not in done.stdout
    (tmp_path / 'empty').mkdir()
    done = check(tmp_path / 'empty')
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [f'error: no pictures and no shards in {tmp_path / "empty"}']

import json
import os

import pytest

from pixnerd_plugin.formats.plain_file import (
    MAX_HOLE,
    parse_json,
    read_at,
    read_json,
    read_small,
    require_file,
    require_written,
)


def test_plain_files_are_read(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(a=[1, 'ä'])), encoding='utf-8')
    assert read_json(path) == dict(a=[1, 'ä'])
    assert read_small(path, 100) == path.read_bytes()
    require_file(path, 'file')
    require_written(path)


@pytest.mark.parametrize('windows', [False, True])
def test_bytes_at_an_offset(tmp_path, monkeypatch, windows):
    if windows:
        monkeypatch.delattr(os, 'pread')
    (tmp_path / 'a').write_bytes(bytes(range(100)))
    with open(tmp_path / 'a', 'rb') as file:
        assert [read_at(file.fileno(), offset, 3) for offset in (90, 5, 98)] == [b'Z[\\', b'\5\6\7', b'bc']


def test_pipes_devices_and_folders_are_not_opened(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    for path in (pipe, '/dev/zero', tmp_path):
        with pytest.raises(ValueError, match='not a plain file'):
            read_json(type(tmp_path)(path))
    with pytest.raises(FileNotFoundError, match='nowhere: no such thing'):
        require_file(tmp_path / 'nowhere', 'thing')
    with pytest.raises(FileNotFoundError):
        require_file(tmp_path / 'a\0b', 'thing')
    (tmp_path / 'link').symlink_to(pipe)
    with pytest.raises(ValueError, match='not a plain file'):
        read_small(tmp_path / 'link', 10)


def test_too_large_or_no_json(tmp_path):
    path = tmp_path / 'a.json'
    path.write_bytes(b' ' * 101)
    with pytest.raises(ValueError, match='more than 100 bytes'):
        read_json(path, 100)
    for text in (
        '',
        '{',
        '[' * 600,
        '[' * 100_000,
        '{"a":' * 600,
        '1' * 5000,
        '\ud800'.encode('utf-8', 'surrogatepass'),
    ):
        with pytest.raises(ValueError, match='not JSON') as error:
            parse_json(text)
        assert '\n' not in str(error.value)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match=r'a\.json'):
        read_json(path)


def test_what_was_never_written_is_noticed(tmp_path):
    path = tmp_path / 'a'
    for before, after in ((0, 0), (4096, 0), (4096, 4096)):
        with open(path, 'wb') as file:
            file.write(b'x' * before)
            file.truncate(before + MAX_HOLE + 2**20)
            file.seek(0, 2)
            file.write(b'x' * after)
        with pytest.raises(ValueError, match='were never written'):
            require_written(path)
    path.write_bytes(b'x' * 10**6)
    require_written(path)
    path.write_bytes(b'')
    require_written(path)


def test_a_sparse_file_of_256_gigabytes_is_refused_at_once(tmp_path):
    path = tmp_path / 'a'
    with open(path, 'wb') as file:
        file.write(b'x')
        file.truncate(2**38)
    with pytest.raises(ValueError, match='never written'):
        require_written(path)

import pytest

from pixnerd_plugin.formats.atomic import atomic_path, remove_leftovers


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

"""Class names as strangers give them: a list of texts, or a file of them, and nothing else."""

import os

import pytest

from pixnerd_plugin.models.conditioners import LabelConditioner
from tests.limits import refusal


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (5, 'class_names=5 must be a list of texts'),
        (True, 'class_names=True must be a list'),
        (b'abc', 'class_names=a bytes must be a list'),
        ({'a': 0, 'b': 1, 'c': 2}, 'class_names=a dict must be a list'),
        ({'a', 'b', 'c'}, 'class_names=a set must be a list'),
        (['a', None, 'c'], 'name of class 1=None must be a text'),
        (['a', ['b'], 'c'], 'name of class 1=a list must be a text'),
        (['a', 'b', 3], 'name of class 2=3 must be a text'),
        (['a', 'b', 'c' * 2000], 'name of class 2=.* at most 1000 characters'),
        (['a', 'b'], '2 class names were given for 3 classes'),
    ],
)
def test_names_of_another_kind_are_told(names, message):
    with pytest.raises(ValueError, match=message) as error:
        LabelConditioner(3, names)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('number', [0, -1, '3', 3.0, None, True, 10**9])
def test_a_number_of_classes_that_is_none_is_told(number):
    with pytest.raises(ValueError, match='num_classes='):
        LabelConditioner(number)


def test_a_file_that_holds_no_class_names_is_named(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_bytes(b'caf\xe9\nb\nc\n')
    assert 'byte 3 is not UTF-8' in refusal(lambda: LabelConditioner(3, path))
    path.write_bytes(b'\xef\xbb\xbfa\nb\nc\n')
    assert LabelConditioner(3, path)(['a']).tolist() == [0]
    path.write_text('a\nb\n')
    assert f'{path}: 2 class names' in refusal(lambda: LabelConditioner(3, path))
    os.truncate(path, 2**38)
    assert 'more than' in refusal(lambda: LabelConditioner(3, path))
    path.unlink()
    assert 'no such file of class names' in refusal(lambda: LabelConditioner(3, path))
    os.mkfifo(path)
    for other in (path, '/dev/zero', tmp_path):
        assert 'not a plain file' in refusal(lambda other=other: LabelConditioner(3, other))


def test_an_empty_part_of_a_name_is_no_name():
    with pytest.raises(ValueError, match="class '' is unknown"):
        LabelConditioner(2, ['tench, ', 'goldfish'])([''])

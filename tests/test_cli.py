import warnings

import pytest
import torch

from pixnerd_plugin.cli import one_line_errors

OUT_OF_MEMORY = 'error: out of memory; ask for smaller or fewer pictures at once'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('two\n  lines'), 'error: two lines'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), OUT_OF_MEMORY),
        (MemoryError(), OUT_OF_MEMORY),
        (torch.OutOfMemoryError('CUDA out of memory.\nTried'), OUT_OF_MEMORY),
        (ValueError('a\x1b[2J\x9b\ud800\u202eb.png'), 'error: a�[2J���b.png'),
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


def test_the_first_to_end_leaves_its_line_for_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv('PIXNERD_LAST_WORDS', str(tmp_path / 'error'))
    for start, rank, line in ((0, 0, 'of the first start'), (1, 1, 'of the second'), (1, 0, 'of another rank')):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(start))
        monkeypatch.setenv('RANK', str(rank))
        with pytest.raises(SystemExit), one_line_errors():
            raise ValueError(line)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        'error_0': '[rank 0] error: of the first start\n',
        'error_1': '[rank 1] error: of the second\n',
    }


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError('name')


def test_a_warning_is_one_line_for_users_and_what_was_there_comes_back(capsys):
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        with one_line_errors():
            warnings.warn('the text encoder does not know\n"dog"', stacklevel=1)
            warnings.warn('for developers', DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == 'warning: the text encoder does not know "dog"\n'
    assert warnings.showwarning is before

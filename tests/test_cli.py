import pytest

from pixnerd_plugin.cli import one_line_errors


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

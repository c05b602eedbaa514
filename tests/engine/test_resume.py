import os
import struct
import zipfile

import pytest
import torch
from mmengine.config import Config

from pixnerd_plugin.engine.resume import find_checkpoint, require_checkpoint, require_fresh, set_resume


def save(path, step, **parts):
    """The least that a training can go on from."""
    state = dict(
        meta=dict(iter=step, epoch=0), state_dict=dict(weight=torch.arange(64.0)), message_hub={}, optimizer={}
    )
    torch.save(state | parts, path)


@pytest.fixture
def work_dir(tmp_path):
    for step in (2, 4, 10):
        save(tmp_path / f'iter_{step}.pth', step)
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
    save(path, 1)
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


def test_a_run_that_saves_elsewhere_is_found_there(tmp_path):
    saved = tmp_path / 'elsewhere/run'
    saved.mkdir(parents=True)
    save(saved / 'iter_4.pth', 4)
    (tmp_path / 'run').mkdir()
    for text in (saved / 'iter_4.pth', 'a\0b/iter_4.pth', tmp_path / 'gone/iter_4.pth'):
        (tmp_path / 'run/last_checkpoint').write_text(str(text))
        assert find_checkpoint(tmp_path / 'run') == (saved / 'iter_4.pth' if text == saved / 'iter_4.pth' else None)


def test_what_a_kill_left_half_written_neither_counts_nor_blocks(tmp_path):
    left = tmp_path / '.tmp-123-iter_3.pth'
    left.write_bytes(b'half')
    assert find_checkpoint(tmp_path) is None
    require_fresh(tmp_path)
    save(tmp_path / 'iter_2.pth', 2)
    assert find_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'


@pytest.mark.parametrize(
    ('parts', 'named'),
    [
        (dict(optimizer=None), 'optimizer'),
        (dict(meta={}, message_hub=None), 'message_hub, meta.iter, meta.epoch'),
        (dict(meta=dict(iter='2', epoch=0)), 'meta.iter'),
    ],
)
def test_weights_alone_are_refused_in_one_line_and_passed_over(work_dir, parts, named):
    save(work_dir / 'iter_4.pth', 4, **parts)
    with pytest.raises(ValueError, match=rf'no state of a training \(it has no {named}\).*load_from=') as refused:
        set_resume(Config(dict(work_dir=str(work_dir))), str(work_dir / 'iter_4.pth'))
    assert '\n' not in str(refused.value)
    assert find_checkpoint(work_dir) == work_dir / 'iter_2.pth'


@pytest.mark.parametrize('content', [[1, 2], torch.ones(2), None])
def test_a_file_of_something_else_is_passed_over(work_dir, content):
    torch.save(content, work_dir / 'iter_4.pth')
    assert find_checkpoint(work_dir) == work_dir / 'iter_2.pth'


def test_a_foreign_archive_is_passed_over(work_dir):
    with zipfile.ZipFile(work_dir / 'iter_4.pth', 'w') as archive:
        archive.writestr('holiday.jpg', bytes(100))
    assert find_checkpoint(work_dir) == work_dir / 'iter_2.pth'


def test_whatever_bit_flips_at_the_end_of_a_file_it_is_refused_or_loads_unchanged(tmp_path):
    path = tmp_path / 'iter_1.pth'
    save(path, 1)
    whole, loaded = path.read_bytes(), 0
    for at in range(8 * 168):
        damaged = bytearray(whole)
        damaged[-1 - at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            require_checkpoint(path)
        except ValueError:
            continue
        loaded += 1
        state = torch.load(path, map_location='cpu', weights_only=True)
        assert torch.equal(state['state_dict']['weight'], torch.arange(64.0))
        assert state['meta'] == dict(iter=1, epoch=0)
    assert 0 < loaded < 8 * 168 / 3, 'most of these bytes matter, and some do not'


def test_a_record_that_says_it_is_a_folder_is_refused(tmp_path):
    """Torch would leave its content as the memory happens to be, and load it without a word."""
    path = tmp_path / 'iter_1.pth'
    save(path, 1)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        at, records = archive.start_dir, archive.infolist()
    for record in records:
        damaged = bytearray(whole)
        assert damaged[at : at + 4] == b'PK\1\2'
        damaged[at + 38] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f'{record.filename!r} is encrypted, a patch, a link or a folder'):
            require_checkpoint(path)
        at += 46 + len(record.filename) + len(record.extra) + len(record.comment)


def test_a_folder_with_a_run_is_not_taken_over(work_dir):
    with pytest.raises(ValueError, match=r'holds a run already \(iter_4\.pth\).*--resume.*--work-dir'):
        require_fresh(work_dir)


def test_logs_of_a_start_that_saved_nothing_are_kept_aside(tmp_path):
    log = tmp_path / 'a/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    for number in (1, 2):
        log.write_text(f'{{"step": {number}}}\n')
        require_fresh(tmp_path)
        assert log.with_name(f'scalars.json.{number}').read_text() == f'{{"step": {number}}}\n'
    assert not log.exists()


def test_nothing_but_damaged_checkpoints_is_an_error_and_no_new_start(work_dir):
    for path in work_dir.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match='all 2 checkpoints'):
        find_checkpoint(work_dir)


def test_there_may_be_no_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_a_run_resumes_from_the_last_of_its_folder_or_from_the_file_named(work_dir):
    config = Config(dict(work_dir=str(work_dir)))
    set_resume(config, 'auto')
    assert (config.resume, config.resume_anyway) == (True, False)
    assert config.load_from == str(work_dir / 'iter_4.pth')
    set_resume(config, str(work_dir / 'iter_2.pth'), force=True)
    assert config.load_from == str(work_dir / 'iter_2.pth')
    assert config.resume_anyway
    with pytest.raises(FileNotFoundError, match='iter_3'):
        set_resume(config, str(work_dir / 'iter_3.pth'))


def test_a_run_without_a_checkpoint_starts_anew_and_so_do_its_logs(tmp_path, capsys):
    log = tmp_path / 'a/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1}\n')
    config = Config(dict(work_dir=str(tmp_path)))
    set_resume(config, 'auto')
    assert not config.resume
    assert 'training starts from the beginning' in capsys.readouterr().out
    assert (log.exists(), log.with_name('scalars.json.1').read_text()) == (False, '{"step": 1}\n')


def change_entries(path, offset, value, local=None):
    """Set a field of all entries of a zip archive's directory, and of the headers before their data."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b'PK\1\2', offset), (b'PK\3\4', local)):
        start = content.find(mark)
        while at is not None and start >= 0:
            struct.pack_into('<H', content, start + at, value)
            start = content.find(mark, start + 1)
    path.write_bytes(content)


def repeat(path):
    """A record that the directory names again and again, to be read each time."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', bytes(2**20))
        archive.filelist *= 3


def inflate(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', bytes(2**20))


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: change_entries(path, 8, 1, 6),  # encrypted
        lambda path: change_entries(path, 10, 12, 8),  # bzip2
        repeat,
        inflate,
    ],
    ids=['encrypted', 'bzip2', 'repeat', 'inflate'],
)
def test_archives_that_torch_never_writes_give_way_to_the_one_before(work_dir, damage):
    path = work_dir / 'iter_4.pth'
    damage(path)
    assert find_checkpoint(work_dir) == work_dir / 'iter_2.pth'
    with pytest.raises(ValueError, match=f'^checkpoint {path} is cut short or damaged'):
        require_checkpoint(path)


def test_what_only_has_the_name_of_a_checkpoint_is_passed_over(work_dir):
    (work_dir / 'last_checkpoint').unlink()
    (work_dir / 'iter_12.pth').mkdir()
    (work_dir / 'iter_14.pth').symlink_to(work_dir / 'absent')
    os.mkfifo(work_dir / 'iter_16.pth')
    assert find_checkpoint(work_dir) == work_dir / 'iter_10.pth'
    for name in ('iter_12.pth', 'iter_16.pth'):
        with pytest.raises(ValueError, match=f'{name} is no file'):
            require_checkpoint(work_dir / name)


@pytest.mark.parametrize(
    'content', [b'\xff\xfe', b'\0', b'iter_' + b'9' * 4090, b'iter_' + b'9' * 30 + b'.pth', bytes(5000)]
)
def test_a_pointer_that_names_nothing_is_as_if_there_was_none(work_dir, content):
    (work_dir / 'last_checkpoint').write_bytes(content)
    assert find_checkpoint(work_dir) == work_dir / 'iter_10.pth'


def test_a_run_that_is_started_again_goes_on_from_what_it_has_saved_since(tmp_path, work_dir):
    """Not from the file that it was resumed from at first, unless it has saved nothing yet."""
    before = work_dir / 'iter_2.pth'
    config = Config(dict(work_dir=str(tmp_path / 'new')))
    set_resume(config, str(before), restarted=True)
    assert config.load_from == str(before)
    config.work_dir = str(work_dir)
    set_resume(config, str(before), restarted=True)
    assert config.load_from.endswith('iter_4.pth')


def test_only_later_checkpoints_than_the_pointer_names_are_still_a_run(work_dir):
    (work_dir / 'last_checkpoint').write_text('iter_1.pth')
    with pytest.raises(ValueError, match='holds a run already'):
        require_fresh(work_dir)
    assert find_checkpoint(work_dir).name == 'iter_10.pth'

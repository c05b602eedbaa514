import pytest
import torch
from mmengine.config import Config

from pixnerd_plugin.engine.resume import find_checkpoint, require_checkpoint, set_resume


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
    assert 'resume' not in config
    assert 'training starts from the beginning' in capsys.readouterr().out
    assert log.read_text() == ''

from collections import OrderedDict
from pathlib import Path

import mmengine.runner.runner
import numpy as np
import pytest
import torch
from mmengine.fileio import get_file_backend

from pixnerd_plugin.engine.hooks.checkpoint import BACKEND, AtomicCheckpointHook
from pixnerd_plugin.engine.plain import plain
from tests.training import load, train


@pytest.fixture(autouse=True)
def _import_test_data(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'data'))


def test_plain_values_load_with_weights_only(tmp_path):
    value = OrderedDict(a=np.float64(1.5), b=np.arange(3), c=(Path('x'), None, {True}), d=torch.ones(2), e=np.str_('s'))
    torch.save(plain(value), tmp_path / 'file.pth')
    back = torch.load(tmp_path / 'file.pth', weights_only=True)
    assert back.pop('d').tolist() == [1, 1]
    assert back == dict(a=1.5, b=[0, 1, 2], c=('x', None, {True}), e='s')
    assert type(back['a']) is float


def test_what_has_no_plain_form_is_named():
    with pytest.raises(TypeError, match='object'):
        plain([object()])


def test_the_storage_leaves_nothing_partial(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args=dict(backend=BACKEND))
    backend.put(b'old', tmp_path / 'file')

    def disk_full(path, data):
        with open(path, 'wb') as file:
            file.write(data[:1])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', disk_full)
    with pytest.raises(OSError, match='No space'):
        backend.put(b'new', tmp_path / 'file')
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    assert (tmp_path / 'file').read_bytes() == b'old'


def test_training_goes_on_when_the_disk_is_full(tmp_path, monkeypatch, capsys):
    save = torch.save

    def disk_full_at_four(content, file):
        if file.name.endswith('iter_4.pth'):
            raise OSError(28, 'No space left on device')
        save(content, file)

    monkeypatch.setattr(torch, 'save', disk_full_at_four)
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_6.pth']
    output = ''.join(capsys.readouterr())
    assert 'CHECKPOINT NOT SAVED' in output
    assert f"while writing: '{tmp_path}/iter_4.pth'" in output


def test_nothing_is_serialised_in_memory(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("mmengine's own way of saving, which copies everything twice")

    monkeypatch.setattr(mmengine.runner.runner, 'save_checkpoint', refuse)
    train(tmp_path, train_cfg__max_iters=1)
    assert load(tmp_path / 'iter_1.pth')['meta']['iter'] == 1


def test_a_save_is_measured_without_writing(tmp_path):
    runner = train(tmp_path, train_cfg__max_iters=1)
    before = set(tmp_path.rglob('*'))
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
    assert hook.measure(runner) == pytest.approx((tmp_path / 'iter_1.pth').stat().st_size, rel=0.02)
    assert set(tmp_path.rglob('*')) == before


def test_the_message_hub_does_not_grow(tmp_path):
    train(tmp_path, default_hooks__checkpoint__log_history=3)
    history = load(tmp_path / 'iter_6.pth')['message_hub']['log_history']
    assert {len(values) for values, counts in history.values()} == {3}

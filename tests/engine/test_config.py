import sys

import pytest

from pixnerd_plugin.engine.config import hide_broken_torchvision


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

import sys
import tracemalloc

import torch

from pixnerd_plugin.formats.torch_writer import save_torch
from tests.training import run_tool


def test_a_file_is_written_without_a_copy_in_memory(tmp_path):
    content = {name: torch.full((2**18,), number) for number, name in enumerate('abcdefgh')}  # 1 MiB each
    tracemalloc.start()
    save_torch(tmp_path / 'a.pth', content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert torch.equal(torch.load(tmp_path / 'a.pth', weights_only=True)['c'], content['c'])


FULL = """
import resource, sys
from pathlib import Path
import torch
from pixnerd_plugin.formats.torch_writer import save_torch
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_torch(Path(sys.argv[1]), dict(weight=torch.zeros(100_000)))
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_told_with_the_files_name(tmp_path):
    target = tmp_path / 'a.pth'
    run = run_tool(sys.executable, '-c', FULL, target)
    assert f"while writing: '{target}'" in run.stdout
    assert not any(tmp_path.iterdir())

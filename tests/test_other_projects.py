"""Parts named from another project, in a Python that has not imported pixnerd_plugin."""

import sys

from tests.training import CONFIG, run_tool


def python(program):
    done = run_tool(sys.executable, '-c', program, fresh=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_a_registry_of_mmengine_finds_the_scope_by_itself():
    program = """
from mmengine.registry import MODELS
head = dict(type='pixnerd.NeuralFieldHead', width=4, depth=1)
net = MODELS.build(dict(type='pixnerd.PixNerdDiT', dim=16, depth=1, num_heads=2, num_classes=3, head=head))
print(type(net).__module__, net.head.width)
"""
    assert python(program).strip() == 'pixnerd_plugin.models.backbones.pixnerd_dit 4'


def test_a_runner_trains_from_the_config_alone_and_warns_of_nothing(tmp_path):
    # The config's own custom_imports take the place of the base's, which the scope makes up for.
    program = f"""
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile({str(CONFIG)!r})
config.work_dir = {str(tmp_path)!r}
Runner.from_cfg(config).train()
"""
    printed = python(program)
    assert (tmp_path / 'iter_6.pth').is_file()
    for nuisance in ('registry', 'FileClient', 'HardDiskBackend', 'WARNING'):
        assert nuisance not in ''.join(line for line in printed.splitlines(True) if 'Build settings' not in line), (
            printed
        )

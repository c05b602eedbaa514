"""What works without the packages of the extras, and the one line where something does not. Each in a fresh Python."""

import sys

import pytest

from tests.training import CONFIG, run_tool

# Takes names out of what Python can find, as if they had never been installed; then runs a program or a script.
PROGRAM = """
import runpy, sys

class Without:
    def __init__(self, finder, names):
        self.finder, self.names = finder, names
    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in self.names else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

names, program, *sys.argv = sys.argv[1:]
sys.meta_path[:] = [Without(finder, names.split(',')) for finder in sys.meta_path]
if program:
    exec(program)
else:
    sys.path.insert(0, 'tools')
    runpy.run_path(sys.argv[0], run_name='__main__')
"""


def python(absent, *arguments, program=''):
    return run_tool(sys.executable, '-c', PROGRAM, ','.join(absent), program, *arguments, fresh=True)


DRAW = """
import sys
from pixnerd_plugin import load_pipeline, registry
from pixnerd_plugin.sampling import HeunFlowSampler
pipe = load_pipeline('tests/data/c2i_tiny_lightning.ckpt', device='cpu')
image = pipe.sample([3], [0], 8, sampler=HeunFlowSampler(1))
print(tuple(image.shape), registry.WITH_MMENGINE, sorted(name for name in {names} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ('absent', 'with_mmengine'),
    [
        (['mmcv'], True),
        (['PIL', 'mmcv'], True),
        (['mmengine', 'mmcv', 'PIL', 'transformers', 'sklearn', 'matplotlib', 'tensorboard', 'peft', 'cv2'], False),
    ],
    ids=['without mmcv', 'without Pillow', 'with torch alone'],
)
def test_the_network_and_the_samplers_need_torch_alone(absent, with_mmengine):
    done = python(absent, program=DRAW.format(names=absent))
    assert done.stdout.strip() == f'(1, 3, 8, 8) {with_mmengine} []', done.stderr[-2000:]


@pytest.mark.parametrize(
    ('absent', 'arguments', 'extra'),
    [
        ('mmengine', ['tools/train.py', CONFIG], 'train'),
        ('mmengine', ['tools/test.py', CONFIG, 'a.pth'], 'train'),
        ('PIL', ['tools/train.py', CONFIG, '--work-dir', 'OUT'], 'train'),
        ('tensorboard', ['tools/train.py', 'mm_configs/pixnerd_digits.py', '--work-dir', 'OUT'], 'train'),
        ('sklearn', ['tools/train.py', CONFIG, '--work-dir', 'OUT'], 'demo'),
        ('matplotlib', ['tools/train.py', CONFIG, '--work-dir', 'OUT'], 'demo'),
        ('transformers', ['tools/check_text_encoder.py', 'tests/data/qwen3_tiny'], 'train'),
    ],
)
def test_what_is_missing_is_named_with_its_extra(absent, arguments, extra, tmp_path):
    done = python([absent], *[str(tmp_path) if argument == 'OUT' else argument for argument in arguments])
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line == f"error: {absent} is not installed; install it: pip install 'pixnerd-plugin[{extra}]'"
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'tool',
    [
        'train.py',
        'test.py',
        'text_benchmark.py',
        'sample.py',
        'web_demo.py',
        'analysis_tools/sweep.py',
        'check_text_encoder.py',
        'precompute_text.py',
    ],
)
def test_help_answers_before_torch_or_mmengine_is_imported(tool):
    done = python(['torch', 'mmengine', 'numpy', 'pixnerd_plugin'], f'tools/{tool}', '--help')
    assert done.returncode == 0, done.stderr[-500:]
    assert 'usage: ' in done.stdout

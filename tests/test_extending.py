"""The code of docs/extending.md, run: parts of a user's own, without touching the package."""

import re
import sys

import pytest
import torch
from PIL import Image

from tests.training import ROOT, run_tool

FEW_STEPS = [
    'train_cfg.max_iters=2',
    'train_dataloader.batch_size=4',
    'custom_hooks.0.interval=100',
    'model.sampler.num_steps=2',
]
PAGE = (ROOT / 'docs/extending.md').read_text()


def block(language: str, number: int) -> str:
    return re.findall(rf'```{language}\n(.*?)```', PAGE, re.DOTALL)[number]


@pytest.mark.slow
def test_parts_of_a_users_own(tmp_path):
    (tmp_path / 'my_parts.py').write_text(block('python', 0))
    config = tmp_path / 'my_config.py'
    config.write_text(block('python', 1).replace('mm_configs', str(ROOT / 'mm_configs')))
    paths = f'{tmp_path}:{ROOT}'
    work_dir = tmp_path / 'out'
    run = run_tool(
        sys.executable, 'tools/train.py', config, '--work-dir', work_dir, '--cfg-options', *FEW_STEPS, PYTHONPATH=paths
    )
    assert run.returncode == 0, run.stderr
    checkpoint = torch.load(work_dir / 'iter_2.pth', weights_only=True)
    assert 'backbone.head.gate.weight' in checkpoint['state_dict']
    metadata = checkpoint['meta']['pixnerd']
    assert metadata['architecture']['head'] == dict(type='GatedHead', hidden=32)
    assert metadata['sampling']['type'] == 'TwoStageFlowSampler'
    assert metadata['sampling']['point'] == 0.5
    assert checkpoint['meta']['depends_on']['data'] == dict(fingerprint='stripes of 4 pixels', samples=2)
    assert (work_dir / 'samples/iter_2.png').is_file()

    script = block('python', 2).replace('work_dirs/my_config/iter_1600.pth', str(work_dir / 'iter_2.pth'))
    script = script.replace('lying.png', str(tmp_path / 'lying.png'))
    (tmp_path / 'draw.py').write_text(script)
    run = run_tool(sys.executable, tmp_path / 'draw.py', PYTHONPATH=paths)
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / 'lying.png') as image:
        assert image.size == (32, 32)
    (tmp_path / 'draw.py').write_text(script.replace('import my_parts', ''))
    run = run_tool(sys.executable, tmp_path / 'draw.py')
    assert "'GatedHead'" in run.stderr
    assert 'import the module that registers it first' in run.stderr


@pytest.mark.slow
def test_the_linear_head_by_options_alone(tmp_path):
    options = re.findall(r'[\w.]+=\w+', block('bash', 1))
    run = run_tool(
        sys.executable,
        'tools/train.py',
        'mm_configs/pixnerd_digits.py',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *options,
        *FEW_STEPS,
    )
    assert run.returncode == 0, run.stderr
    state = torch.load(tmp_path / 'iter_2.pth', weights_only=True)['state_dict']
    assert not any('generator' in name for name in state)

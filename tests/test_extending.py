"""The code of docs/extending.md, run: parts of a user's own, without touching the package."""

import re
import sys

import pytest
import torch

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
    assert checkpoint['meta']['pixnerd']['sampling']['type'] == 'MidpointFlowSampler'
    assert (work_dir / 'samples/iter_2.png').is_file()


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

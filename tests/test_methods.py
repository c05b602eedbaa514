"""The files of docs/extending.md that add a head, a loss term and a guidance, run without touching the package."""

import re
import sys

import pytest
import torch

from tests.test_extending import FEW_STEPS, PAGE
from tests.training import ROOT, run_tool

SECTION = PAGE.split('## A head, a loss term, a guidance')[1].split('\n## ')[0]
BLOCKS = re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL)
NAMES = ('my_head', 'my_term', 'my_guidance')


def test_each_is_one_file_of_about_twenty_lines():
    assert re.findall(r'^`(my_\w+)\.py`', SECTION, re.MULTILINE) == list(NAMES)
    assert [len(block.splitlines()) <= 22 for block in BLOCKS[:3]] == [True] * 3


@pytest.mark.slow
def test_they_train_and_draw_together(tmp_path):
    for name, block in zip(NAMES, BLOCKS, strict=False):
        (tmp_path / f'{name}.py').write_text(block)
    config = tmp_path / 'my_config.py'
    config.write_text(BLOCKS[3].replace('mm_configs', str(ROOT / 'mm_configs')))
    work_dir = tmp_path / 'out'
    arguments = ['tools/train.py', config, '--work-dir', work_dir, '--cfg-options', *FEW_STEPS]
    run = run_tool(sys.executable, *arguments, PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert run.returncode == 0, run.stderr
    assert (work_dir / 'samples/iter_2.png').is_file()
    metadata = torch.load(work_dir / 'iter_2.pth', weights_only=True)['meta']['pixnerd']
    assert metadata['architecture']['head'] == dict(type='GatedPixelHead')
    assert metadata['sampling']['guidance'] == dict(type='RescaledGuidance', share=0.5)
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    assert 'loss_edges_by_time/' in log.read_text()


@pytest.mark.slow
def test_deco_s_head_takes_the_field_s_place_on_the_digits_by_one_option(tmp_path):
    (option,) = re.findall(r"`\"(model\.backbone\.head=dict\(type='DeCoHead'\))\"`", PAGE)
    arguments = ['tools/train.py', 'mm_configs/pixnerd_digits.py', '--work-dir', tmp_path, '--cfg-options']
    run = run_tool(sys.executable, *arguments, option, *FEW_STEPS)
    assert run.returncode == 0, run.stderr
    metadata = torch.load(tmp_path / 'iter_2.pth', weights_only=True)['meta']['pixnerd']
    assert metadata['architecture']['head']['type'] == 'DeCoHead'


def test_a_guidance_of_ones_own_is_kept_by_a_field(tmp_path):
    """In this process: the numbers it takes of whole pictures are recorded and read back."""
    from pixnerd_plugin.registry import MODELS
    from pixnerd_plugin.sampling import EulerFlowSampler, FieldTrajectory

    exec(BLOCKS[2], {'__name__': 'my_guidance'})
    try:
        net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=3))
        torch.nn.init.normal_(net.head.proj.weight)
        sampler = EulerFlowSampler(3, guidance=dict(type='RescaledGuidance'))
        conditions = torch.tensor([0, 1]), torch.tensor([3])
        noise = torch.randn(2, 3, 8, 8)
        image, field = sampler.sample(net, noise, *conditions, record_field=True, field_dtype=torch.float32)
        field.save(tmp_path / 'field.safetensors')
        torch.testing.assert_close(FieldTrajectory.load(tmp_path / 'field.safetensors').decode(), image)
    finally:
        del MODELS.module_dict['RescaledGuidance']

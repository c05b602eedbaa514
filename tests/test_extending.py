"""The code of docs/extending.md, run: parts of a user's own, without touching the package."""

import json
import re
import shlex
import sys

import pytest
import torch
from PIL import Image

from pixnerd_plugin.checkpoints.own_parts import import_parts, modules_of
from tests.training import ROOT, run_tool

FEW_STEPS = [
    'train_cfg.max_iters=2',
    'train_dataloader.batch_size=4',
    'custom_hooks.0.interval=100',
    'model.sampler.num_steps=2',
]
PAGE = (ROOT / 'docs/extending.md').read_text()


def block(language: str, number: int, after: str = '') -> str:
    """The block of this number in the page, or in the part of it after a heading."""
    return re.findall(rf'```{language}\n(.*?)```', PAGE.partition(after)[2] if after else PAGE, re.DOTALL)[number]


def write(folder, **modules):
    for name, content in modules.items():
        (folder / f'{name}.py').write_text(content.replace("'mm_configs", f"'{ROOT}/mm_configs"))


def train(folder, config, *options):
    paths = f'{folder}:{ROOT}'
    command = ('tools/train.py', folder / config, '--work-dir', folder / 'out', '--cfg-options', *FEW_STEPS, *options)
    run = run_tool(sys.executable, *command, PYTHONPATH=paths)
    assert run.returncode == 0, run.stderr
    return torch.load(folder / 'out/iter_2.pth', weights_only=True)


@pytest.mark.slow
def test_parts_of_a_users_own(tmp_path):
    write(tmp_path, my_parts=block('python', 0), my_config=block('python', 1))
    checkpoint = train(tmp_path, 'my_config.py')
    work_dir, paths = tmp_path / 'out', f'{tmp_path}:{ROOT}'
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
    assert 'import the module that registers it first (--import my_parts on the command line' in run.stderr

    tools_take_imports(tmp_path, work_dir / 'iter_2.pth', paths)


def tools_take_imports(folder, checkpoint, paths):
    """Every command that reads weights draws with, converts and inspects parts that it is told to import."""

    def tool(name, *arguments, imports=('--import', 'my_parts')):
        return run_tool(sys.executable, f'tools/{name}.py', *arguments, *imports, PYTHONPATH=paths)

    drawn = ('sample', checkpoint, '--class-label', '0', '--steps', '1', '--out', folder / 'drawn')
    run = tool(*drawn, imports=())
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith('error: ')]
    assert "head 'GatedHead' is none of PixNerd; import the module that registers it first" in line
    assert '--import my_parts on the command line, as the config in the file does' in line
    run = tool(*drawn)
    assert run.returncode == 0, run.stderr
    with Image.open(folder / 'drawn/0_seed0.png') as image:
        assert json.loads(image.info['pixnerd'])['sampler']['type'] == 'TwoStageFlowSampler'
    run = tool(*drawn, imports=('--import-config',))
    assert run.returncode == 0, run.stderr
    assert f'importing my_parts, as the config in {checkpoint} does' in run.stdout

    run = tool('convert_checkpoint', checkpoint, folder / 'mine.safetensors')
    assert run.returncode == 0, run.stderr
    run = tool('inspect_checkpoint', folder / 'mine.safetensors')
    assert '"type": "GatedHead"' in run.stdout
    assert 'ODD' not in run.stdout, run.stdout
    run = tool('test', folder / 'my_config.py', checkpoint, '--num-samples', '2', '--work-dir', folder, imports=())
    assert run.returncode == 0, run.stderr
    assert (folder / 'test/samples.npz').is_file()


@pytest.mark.slow
def test_data_and_metrics_of_a_users_own(tmp_path):
    parts, config = (block('python', number, after='## Data and metrics') for number in (0, 1))
    write(tmp_path, more_parts=parts, more_config=config)
    checkpoint = train(tmp_path, 'more_config.py', 'train_cfg.val_interval=2')
    assert checkpoint['meta']['depends_on']['data'] == dict(fingerprint='ramps from 0 to 255', samples=120)
    assert checkpoint['meta']['pixnerd']['class_names'] == ['wide', 'tall']
    logged = [json.loads(line) for file in tmp_path.glob('out/*/vis_data/scalars.json') for line in file.open()]
    assert any(0 <= entry['val/grey_error'] <= 255 for entry in logged if 'val/grey_error' in entry)
    for height, width in ((16, 32), (32, 16)):
        with Image.open(tmp_path / f'out/samples/iter_2_{height}x{width}.png') as image:
            assert image.size == (2 * width + 2, height)  # two pictures and a line between them


def test_modules_to_import_are_read_from_a_config_and_not_run(tmp_path):
    def saved(config):
        torch.save(dict(state_dict={}, meta=dict(cfg=config)), tmp_path / 'a.pth')
        return modules_of(tmp_path / 'a.pth')

    imports = "custom_imports = dict(imports=['pixnerd_plugin', 'my.parts', 'my.parts', '../evil', 'b c'])\n"
    assert saved(imports + "raise SystemExit('never run')\n") == ['my.parts']
    assert saved("custom_imports = dict(imports='alone', allow_failed_imports=False)") == ['alone']
    for nothing in ('', 'custom_imports = None', 'custom_imports = dict(imports=[open("x")])', '(' * 5000, 7):
        assert saved(nothing) == []
    assert modules_of(tmp_path / 'nowhere.pth') == []


def test_a_module_that_does_not_import_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    write(tmp_path, own_fine_part='value = 1', own_broken_part='def', own_needy_part='import not_there_at_all')
    import_parts(['own_fine_part.py'])
    assert sys.modules.pop('own_fine_part').value == 1
    for name, message in (
        ('own_absent_part', "there is no module 'own_absent_part' on the Python path or in "),
        ('own_broken_part', 'own_broken_part does not import: '),
        ('own_needy_part', "own_needy_part does not import: No module named 'not_there_at_all'"),
    ):
        with pytest.raises(ValueError, match=message):
            import_parts([name])


@pytest.mark.slow
def test_the_linear_head_by_options_alone(tmp_path):
    options = [word for word in shlex.split(block('bash', 2)) if '=' in word]
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

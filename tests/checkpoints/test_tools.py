"""The two tools as programs: from anywhere, stopped half way, into a pipe that closes, on a disk that is full."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints.inspect import report
from pixnerd_plugin.sampling import EulerFlowSampler
from tests.golden import DATA

from .files import save_mmengine, tiny_inputs, tiny_network

ROOT = Path(__file__).parents[2]
SOURCE = DATA / 'c2i_tiny_lightning.ckpt'

# Stands for a Python that has what ComfyUI has, and nothing of what trains.
BARE = """
import importlib.machinery, runpy, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split('.')[0] in {absent} else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
TRAINING = ('mmengine', 'mmcv', 'transformers', 'PIL', 'tensorboard', 'sklearn', 'matplotlib', 'peft', 'gradio', 'cv2')


def packed(folder: Path) -> Path:
    """The pack as the registry's archive has it: what git knows, without what .comfyignore names."""
    names = subprocess.run(
        ['git', 'ls-files', '-c', '-o', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True
    )
    if names.returncode:
        pytest.skip('not a git checkout')
    listing = folder / 'ignored'
    subprocess.run(['git', 'init', '-q', listing], check=True)
    shutil.copy(ROOT / '.comfyignore', listing / '.gitignore')
    files = names.stdout.splitlines()
    run = subprocess.run(
        ['git', 'check-ignore', '--no-index', '--stdin'],
        cwd=listing,
        input='\n'.join(files),
        capture_output=True,
        text=True,
    )
    ignored = set(run.stdout.splitlines())
    assert {'tests/golden.py', 'tools/train.py', 'pixnerd_plugin/engine/loops.py'} <= ignored
    pack = folder / 'custom_nodes/PixNerd Plugin'
    for name in files:
        if name not in ignored and (ROOT / name).is_file():
            (pack / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, pack / name)
    return pack


def test_the_registrys_archive_converts_with_a_python_that_trains_nothing(tmp_path):
    tool = packed(tmp_path) / 'tools/convert_checkpoint.py'
    # -I: no PYTHONPATH, no script's folder on the path. Then the same where mmengine is installed too.
    for name, start in (('a.safetensors', ['-c', BARE.format(absent=TRAINING)]), ('b.safetensors', [])):
        command = [sys.executable, '-I', *start, tool, SOURCE, tmp_path / name]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert load_backbone(tmp_path / name).depth == load_backbone(SOURCE).depth


def test_the_tools_start_from_any_folder(tmp_path):
    for tool, arguments in (('convert_checkpoint.py', ['out.safetensors']), ('inspect_checkpoint.py', [])):
        command = [sys.executable, '-I', ROOT / 'tools' / tool, SOURCE, *arguments]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert (tmp_path / 'out.safetensors').exists()


SLOW = """
import runpy, sys, time
from pixnerd_plugin.formats import safetensors_file
read = safetensors_file.tensor_bytes

def slowly(tensor):
    print('writing', flush=True)
    time.sleep(60)
    return read(tensor)

safetensors_file.tensor_bytes = slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path, number):
    out = tmp_path / 'out'
    command = [sys.executable, '-c', SLOW, ROOT / 'tools/convert_checkpoint.py', SOURCE, out / 'a.safetensors']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'writing\n'
    assert len(list(out.iterdir())) == 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 1)
    assert 'Traceback' not in errors
    assert not any(out.iterdir())


def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path):
    command = [sys.executable, '-c', SLOW, ROOT / 'tools/convert_checkpoint.py', SOURCE, tmp_path / 'a.safetensors']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'writing\n'
    process.kill()
    process.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    command = [sys.executable, ROOT / 'tools/convert_checkpoint.py', SOURCE, tmp_path / 'a.safetensors']
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ['a.safetensors']


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth'])
def test_a_full_disk_names_the_file(tmp_path, name):
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5));'
    run_tool = f"{limit} import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    target = tmp_path / 'out' / name
    command = [sys.executable, '-c', run_tool, ROOT / 'tools/convert_checkpoint.py', SOURCE, target]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith('error: ')
    assert str(target) in run.stderr.splitlines()[-1]
    assert not any(target.parent.iterdir())


@pytest.mark.parametrize('arguments', [(), ('--json',)])
def test_inspect_into_a_pipe_that_closes(arguments):
    command = [sys.executable, ROOT / 'tools/inspect_checkpoint.py', SOURCE, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == 0
    assert 'Broken pipe' not in errors
    assert 'Exception ignored' not in errors


def test_inspect_knows_fields_text_encoders_and_adapters(tmp_path):
    net = tiny_network()
    x, _, cond = tiny_inputs(net)
    sampler = EulerFlowSampler(num_steps=2, guidance_scale=1.0)
    _, field = sampler.sample(net, x, cond, torch.full_like(cond, 3), record_field=True)
    field.save(tmp_path / 'field.safetensors')
    found = report(tmp_path / 'field.safetensors')
    assert found['kind'] == 'field trajectory'
    assert found['field'] == dict(
        head='NeuralFieldHead', sampler='EulerFlowSampler', noise=list(x.shape), evaluations=len(field.tokens)
    )
    found = report(DATA / 'qwen3_tiny')
    assert found['kind'] == 'Qwen3 folder (text encoder)'
    assert found['parameters'] == report(DATA / 'qwen3_tiny/model.safetensors')['parameters']

    layer = 'base_model.model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
    save_file(tensors, tmp_path / 'adapter_model.safetensors')
    found = report(tmp_path)
    assert (found['kind'], found['lora']['kinds'], found['lora']['ranks']) == ('LoRA', ['LoRA'], [4])
    assert not any('stock' in reader or 'ComfyUI' in reader for reader in found['loads_with'])


def test_what_a_file_holds_does_not_reach_the_terminal_as_commands(tmp_path):
    state = tiny_network().state_dict()
    metadata = dict(variant='\x1b[2J\x07red', class_names=['\x1b]0;x', 'b', 'c'])
    path = save_mmengine(tmp_path / 'a.pth', state, state, {}, metadata)
    content = torch.load(path, weights_only=True)
    content['\x1b[31m'] = content['\u202e'] = 1
    torch.save(content, path)
    command = [sys.executable, ROOT / 'tools/inspect_checkpoint.py', path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'red' in output
    assert not any(char in output for char in '\x1b\x07\u202e')


@pytest.mark.parametrize('option', [[], ['--json']])
def test_nor_do_the_names_in_an_adapters_metadata(tmp_path, option):
    layer = 'diffusion_model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
    path = tmp_path / 'a.safetensors'
    save_file(tensors, path, {'a\x1b[2J\x9b\nloads with': '\x9b2J\u202e\U000e0001ü'})
    # Half of a surrogate pair, which no terminal can print.
    path.write_bytes(path.read_bytes().replace(b'\\u001b', b'\\ud800'))
    command = [sys.executable, ROOT / 'tools/inspect_checkpoint.py', *option, path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'ü' in output
    assert all(line.isprintable() for line in output.splitlines())
    if option:
        assert json.loads(output)['metadata'] == {'a\ud800[2J\x9b\nloads with': '\x9b2J\u202e\U000e0001ü'}


def test_inspect_names_the_field_whose_description_is_broken(tmp_path):
    path = tmp_path / 'field.safetensors'
    for description in ('{', 'x', '{"a":' * 2000):
        save_file({'noise': torch.ones(1)}, path, {'pixnerd_field': description})
        with pytest.raises(ValueError, match=f'^{re.escape(str(path))}: not JSON'):
            report(path)

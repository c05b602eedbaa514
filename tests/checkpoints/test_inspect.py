import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report
from tests.golden import DATA

from .files import save_lightning, save_mmengine, tiny_network, tiny_projector

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a tool as a program would be, within this process; returns its exit code and output."""

    def run_tool(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
            code = 0
        except SystemExit as exit:
            code = exit.code
        output = capfd.readouterr()
        return code, output.out + (code if isinstance(code, str) else '')

    return run_tool


def test_a_published_file_is_described(run):
    code, output = run('inspect_checkpoint.py', DATA / 'c2i_tiny_lightning.ckpt')
    assert code == 0
    for text in (
        'published Lightning layout',
        'EMA weights',
        'raw weights',
        '244,891 parameters',
        'projector',
        'float32',
    ):
        assert text in output
    code, output = run('inspect_checkpoint.py', DATA / 'c2i_tiny_lightning.ckpt', '--json', '--quick')
    result = json.loads(output)
    assert result['networks']['ema']['parts']['label_embed'] == 11 * 48
    assert result['networks']['raw']['architecture']['num_classes'] == 10
    assert result['steps'] == 1600000
    assert 'the released code' in result['loads_with']
    assert result['odd'] == []


def test_odd_things_are_named_and_fail(run, tmp_path):
    state = {name: tensor.clone() for name, tensor in tiny_network().state_dict().items()}
    state['head.proj.bias'].zero_()
    state['patch_embed.bias'][3] = float('nan')
    state['extra.weight'] = torch.ones(1)
    state['blocks.0.norm1.weight'] = torch.ones(16, dtype=torch.int64)
    save_file(state, tmp_path / 'a.safetensors')
    code, output = run('inspect_checkpoint.py', tmp_path / 'a.safetensors')
    assert code == 1
    for text in ('head.proj.bias is all zeros', 'patch_embed.bias holds NaN', 'unexpected extra.weight', 'int64'):
        assert text in output
    code, output = run('inspect_checkpoint.py', tmp_path / 'a.safetensors', '--quick')
    assert code == 1
    assert 'NaN' not in output

    del state['patch_embed.bias'], state['extra.weight']
    save_file(state, tmp_path / 'b.safetensors')
    assert 'missing patch_embed.bias' in run('inspect_checkpoint.py', tmp_path / 'b.safetensors')[1]


def test_kinds_and_what_loads_them(tmp_path):
    state = tiny_network().state_dict()
    training = report(save_mmengine(tmp_path / 'a.pth', state, state, tiny_projector(), dict(resolution=32)))
    assert training['kind'] == 'mmengine training checkpoint'
    assert training['metadata']['resolution'] == 32
    convert(tmp_path / 'a.pth', tmp_path / 'a.safetensors', dtype='float8')
    single = report(tmp_path / 'a.safetensors')
    assert 'ComfyUI (PixNerdModelLoader)' in single['loads_with']
    assert set(single['networks']['ema']['dtypes']) == {'float8_e4m3fn', 'bfloat16'}
    assert report(save_lightning(tmp_path / 'a.ckpt', state, state, {}))['odd'] == []
    assert report(DATA / 'qwen3_tiny/model.safetensors')['kind'] == 'Qwen3 text encoder'

    layer = 'diffusion_model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
    save_file(tensors, tmp_path / 'lora.safetensors')
    assert report(tmp_path / 'lora.safetensors')['lora'] == dict(layers=1, ranks=[4], alphas=[], kinds=['LoRA'])


def test_mistakes_are_told_in_one_line(run, tmp_path):
    (tmp_path / 'a.ckpt').write_bytes(b'nothing')
    for path in (tmp_path / 'a.ckpt', tmp_path / 'nowhere.pth'):
        code, _ = run('inspect_checkpoint.py', path)
        assert code.startswith(f'error: {path}')
        assert '\n' not in code


def test_the_converter_as_a_command(run, tmp_path):
    source, target = DATA / 'c2i_tiny_lightning.ckpt', tmp_path / 'a.safetensors'
    code, output = run('convert_checkpoint.py', source, target, '--dtype', 'bfloat16')
    assert code == 0
    assert f'{target}: custom, EMA weights' in output
    assert '--resolution' in output
    code, _ = run('convert_checkpoint.py', source, target)
    assert code == f'error: {target} exists; give --force to replace it'
    assert run('convert_checkpoint.py', source, target, '--force', '--resolution', 16)[0] == 0
    assert report(target)['metadata']['resolution'] == 16
    assert 'text encoder' in run('convert_checkpoint.py', DATA / 'qwen3_tiny', tmp_path / 'q.safetensors')[1]

    layer = 'diffusion_model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 48), f'{layer}.lora_B.weight': torch.ones(144, 4)}
    save_file(tensors, tmp_path / 'lora.safetensors')
    lora = tmp_path / 'lora.safetensors'
    assert (
        run('convert_checkpoint.py', target, tmp_path / 'm.pth', '--merge-lora', f'{lora}:0.5', f'{lora}:-.5')[0] == 0
    )

"""Headers, descriptions and adapters that lie: each is refused with one clear line, before anything is built."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints.lora import apply_lora

from .files import same, save_mmengine, tiny_network
from .refusals import refusal


def write_header(path: Path, header, data: bytes = b'\0' * 8, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text) if length is None else length) + text + data)
    return path


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
    return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets))


@pytest.mark.parametrize(
    ('header', 'reason'),
    [
        (b'{"a":' * 20_000 + b'1' + b'}' * 20_000, 'nested too deeply'),
        (b'\xff\xfe{}', 'decode'),
        (b'[1]', 'not a table'),
        (b'{', 'Expecting'),
        (b'{"__metadata__": {"a": 1}}', 'metadata'),
        (b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), "'a' appears twice"),
        ({'a': entry(), 'b': entry()}, "'b' begins at byte 0, where 8 is due"),
        ({'a': entry(offsets=(4, 12))}, "'a' begins at byte 4"),
        ({'a': entry(shape=(1,), offsets=(0, 4))}, 'describes'),
        ({'a': entry(shape=(3,), offsets=(0, 12))}, 'describes'),
        ({'a': entry(shape=(3,))}, 'has 8 bytes'),
        ({'a': entry(dtype='F128')}, "dtype 'F128'"),
        ({'a': entry(dtype=['F32'])}, 'dtype'),
        ({'a': entry(shape=(-2,))}, 'not lists of sizes'),
        ({'a': entry(shape=(2.0,))}, 'not lists of sizes'),
        ({'a': entry(shape=(True, 2))}, 'not lists of sizes'),
        ({'a': entry(shape=(2**62, 2**62))}, 'bytes'),
        ({'a': entry(shape=(2**80,))}, 'not lists of sizes'),
        ({'a': entry(shape=(1,) * 9)}, '9 dimensions'),
        ({'a': entry(offsets=(0,))}, 'offsets'),
        ({'a': dict(entry(), more=1)}, 'not described by'),
        ({'a': 7}, 'not described by'),
        ({'a': entry(shape=(0, 2**62), offsets=(0, 0)), 'b': entry()}, 'no PixNerd network'),
        ({}, 'describes'),
    ],
)
def test_malformed_safetensors(tmp_path, header, reason):
    assert reason in refusal(write_header(tmp_path / 'a.safetensors', header))


def test_safetensors_headers_that_claim_too_much(tmp_path):
    for length in (100, 2**30, 2**63):
        assert 'claims' in refusal(write_header(tmp_path / 'a.safetensors', {}, length=length))
    (tmp_path / 'a.safetensors').write_bytes(b'123')
    refusal(tmp_path / 'a.safetensors')


@pytest.mark.parametrize('cut', [1, 8, 1000])
def test_files_cut_short(tmp_path, cut):
    state = tiny_network().state_dict()
    for name, content in (
        ('a.safetensors', save(state)),
        ('a.pth', save_mmengine(tmp_path / 'x.pth', state, state, {}).read_bytes()),
    ):
        (tmp_path / name).write_bytes(content[:-cut])
        assert 'is it complete' in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ('metadata', 'reason'),
    [
        (
            dict(architecture=dict(type='os.system', command='touch trap', head={})),
            "backbone 'os.system' is none of PixNerd",
        ),
        (dict(architecture=dict(type='PixNerdDiT', head=dict(type='os.system', command='touch trap'))), 'head'),
        (dict(architecture=dict(type='PixNerdDiT', head=dict(type='subprocess.Popen', args='false'))), 'head'),
        (dict(architecture=dict(type='PixNerdDiT', head=dict(type='NeuralFieldHead', operations='os'))), 'operations'),
        (dict(architecture=dict(type='PixNerdDiT', depth=10**9, head=dict(type='NeuralFieldHead'))), 'depth'),
        (dict(architecture=dict(type='PixNerdDiT', head=dict(type='NeuralFieldHead', coordinates='none'))), 'none'),
        (
            dict(architecture=dict(type='PixNerdDiT', position_rule=[[]], head=dict(type='NeuralFieldHead'))),
            'position_rule',
        ),
        (dict(architecture=[1]), 'architecture'),
        (dict(sampling=dict(type='os.system', command='touch trap')), 'sampling'),
        (dict(sampling=dict(type='EulerFlowSampler', num_steps=10**12)), 'sampling'),
        (dict(sampling=dict(type='EulerFlowSampler', num_steps='many')), 'sampling'),
        (dict(resolution='large'), 'resolution'),
        (dict(resolution=-1), 'resolution'),
        (dict(class_names='abc'), 'class_names'),
        (dict(class_names=['\ud800']), 'class_names'),
        (dict(weights='best'), 'weights'),
        (dict(version=99), 'newer'),
        ([], 'not a table'),
    ],
)
def test_metadata_is_not_believed(tmp_path, metadata, reason):
    state = tiny_network().state_dict()
    path = tmp_path / 'a.safetensors'
    path.write_bytes(save(state, {'pixnerd': json.dumps(metadata)}))
    assert reason in refusal(path)
    path = save_mmengine(tmp_path / 'a.pth', state, state, {}, metadata) if metadata else path
    assert reason in refusal(path)
    assert not Path('trap').exists()


def test_absurd_networks_are_not_built(tmp_path):
    state = {name: t for name, t in tiny_network().state_dict().items() if not name.startswith('blocks.1')}
    for index in range(1, 3000):
        state[f'blocks.{index}.norm1.weight'] = torch.ones(1)
    (tmp_path / 'a.safetensors').write_bytes(save(state))
    assert 'parts named blocks.' in refusal(tmp_path / 'a.safetensors')

    state = tiny_network().state_dict()
    state['patch_embed.weight'] = torch.zeros(0, 48)
    (tmp_path / 'a.safetensors').write_bytes(save(state))
    refusal(tmp_path / 'a.safetensors')


def test_a_lora_is_not_believed_either(tmp_path):
    net = tiny_network()
    path = write_header(tmp_path / 'a.safetensors', {'x.lora_A.weight': entry(shape=(2**62,))})
    refusal(path, lambda path: apply_lora(net, path))
    tensors = {'base_model.model.x.lora_A.weight': torch.ones(1)}
    (tmp_path / 'adapter_model.safetensors').write_bytes(save(tensors))
    for text in (
        '[' * 100,
        '{"lora_alpha": 1e400}',
        '{"lora_alpha": 1%s}' % ('0' * 400),
        '[]',
        'null',
        '{"lora_alpha": "x"}',
    ):
        (tmp_path / 'adapter_config.json').write_text(text)
        assert 'adapter_config.json' in refusal(tmp_path, lambda path: apply_lora(net, path))


def test_names_and_dtypes_that_no_network_has(tmp_path):
    state = tiny_network().state_dict()
    path = tmp_path / 'a.safetensors'
    path.write_bytes(save({**state, **{f'{"x" * 900}{index}': torch.ones(1) for index in range(5)}}))
    assert 'unexpected xxx' in refusal(path)
    for name in ('x' * 1001, 'blocks.0\x1b[2J', 'blocks.0\n', 'a\u202e'):
        path.write_bytes(save({**state, name: torch.ones(1)}))
        assert 'printable characters' in refusal(path)
    # Beside the network, anything that the format can say.
    prefixed = {f'backbone.{name}': tensor for name, tensor in state.items()}
    others = {f'other.{dtype}': torch.ones(2).to(dtype) for dtype in (torch.uint16, torch.uint64, torch.float8_e5m2)}
    path.write_bytes(save({**prefixed, **others}))
    assert same(load_backbone(path).state_dict(), state)

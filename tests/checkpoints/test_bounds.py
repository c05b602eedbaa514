"""Files made to take time or memory: each is answered within the limits, whoever reads it."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.checkpoints.metadata import parse_metadata_tensor
from pixnerd_plugin.registry import MODELS

from .archives import rewrite_pickle
from .files import prefixed, save_lightning, tiny_network
from .limited import FAULT, LOADED, REFUSED, Limited

ALL = ('backbone', 'inspect', 'convert', 'torch', 'published', 'raw', 'pipeline')
READERS = ('backbone', 'inspect', 'convert', 'lora')
# Where the file is refused before anyone looks for a network in it.
DOOR = ('backbone', 'lora')


@pytest.fixture(scope='module')
def process():
    process = Limited()
    yield process
    process.close()


@pytest.fixture
def answers(process):
    """Read a file; each reader must refuse it in one line, which is returned, or load it if it is in ``loads``."""

    def ask(path, readers=READERS, loads=(), either=()):
        lines = []
        for reader in readers:
            outcome, text = process.read(reader, path)
            expected = (LOADED, REFUSED) if reader in either else (LOADED,) if reader in loads else (REFUSED,)
            assert outcome in expected, f'{reader}: {outcome}: {text}'
            lines.append(text)
        return lines

    return ask


def test_the_limits_bite(process, tmp_path):
    (tmp_path / 'a').touch()
    assert process.read('greedy', tmp_path / 'a') == (FAULT, 'MemoryError: ')
    assert process.read('broken', tmp_path / 'a')[0] == FAULT
    assert process.read('backbone', tmp_path / 'b.ckpt') == (REFUSED, f'{tmp_path / "b.ckpt"}: no such checkpoint file')


STATE = tiny_network().state_dict()


def nested(kind, depth=45):
    """One value that holds itself twice at every level, ``2 ** depth`` in all."""
    value = kind((0,))
    for _ in range(depth):
        value = kind((value, value))
    return value


LAUGHS = [nested(list), nested(tuple), {'a': nested(list), 'b': {'c': nested(tuple)}}]


@pytest.mark.parametrize('laughs', LAUGHS)
@pytest.mark.parametrize('place', ['sampling', 'architecture', 'class_names', 'source', 'lora', 'variant', 'version'])
def test_metadata_that_holds_itself_often(tmp_path, answers, laughs, place):
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=STATE, pixnerd={place: laughs}), path)
    answers(path)


def test_values_that_hold_themselves_often_where_nothing_is_needed(tmp_path, answers):
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=STATE, pixnerd=dict(own=LAUGHS), optimizer=LAUGHS, hyper_parameters=LAUGHS), path)
    answers(path, ALL, ALL)
    # As a key, which has a hash.
    start = b'\x80\x02})q\x010' + b'h\x01h\x01\x86q\x010' * 45
    state = rewrite_pickle_start(tmp_path, start)
    answers(state, ('backbone', 'inspect'), ('backbone', 'inspect'))


def rewrite_pickle_start(folder, start):
    """A checkpoint with one more entry, whose key is the value that ``start`` leaves in memo 1."""
    path = folder / 'key.ckpt'
    torch.save(dict(state_dict=STATE), path)

    def change(content):
        # The memo numbers of what follows begin above those of ``start``.
        body = content[2:]
        return start.replace(b'q\x01', b'r\xff\xff\x00\x00').replace(b'h\x01', b'j\xff\xff\x00\x00') + (
            b'0' + body[:-1] + b'j\xff\xff\x00\x00K\x05s.'
        )

    return rewrite_pickle(path, change)


def text(content):
    return b'X' + struct.pack('<I', len(content)) + content


HUGE = b'\x8b' + struct.pack('<i', 8 * 2**20) + b'\x87' * 8 * 2**20


@pytest.mark.parametrize(
    'content',
    [
        # Keys whose hash is taken anew each time, that are long and equal, or that all have one hash.
        b'}' + HUGE + b'q\x000' + b'h\x00Ns' * 200_000,
        text(b'x' * 7 * 2**20) + b'q\x000' + text(b'x' * 7 * 2**20) + b'q\x010}' + b'h\x00Nsh\x01Ns' * 100_000,
        b'}(' + b''.join(b'\x8a\x0c' + (i * (2**61 - 1)).to_bytes(12, 'little') + b'N' for i in range(150_000)) + b'u',
        # A long name, joined again and again.
        text(b'x' * 2**20) + b'q\x000(' + b'h\x00h\x00\x93' * 100_000 + b't',
        # A long shape, looked at again and again.
        b'(' + b'K\x01' * 300_000 + b'tq\x000ctorch._utils\n_rebuild_tensor_v2\nq\x010('
        b'(X\x07\x00\x00\x00storagectorch\nUntypedStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ'
        b'q\x02' + b'h\x01(h\x02K\x00h\x00h\x00tR0' * 50_000 + b't',
    ],
    ids=['huge key', 'long keys', 'one hash', 'long name', 'long shape'],
)
def test_pickles_that_refer_to_one_large_value_often(tmp_path, answers, content):
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=STATE), path)
    rewrite_pickle(path, lambda pickle: b'\x80\x02' + content + b'.')
    answers(path, ('backbone',))


@pytest.mark.parametrize(
    'content',
    [
        b'\x80\x02' + b'N' * 15 * 2**20 + b'.',
        b'\x80\x02' + b']' * 15 * 2**20 + b'.',
        b'\x80\x02' + b'}\x94' * 7 * 2**20 + b'.',
        b'\x80\x02' + b'(' * 15 * 2**20 + b'.',
        b'\x80\x02' + b']' * 400_000 + b'a' * 399_999 + b'.',
        b'\x80\x02' + b'(' * 300_000 + b't' * 300_000 + b'.',
        b'\x80\x02}X\x0a\x00\x00\x00state_dict}(' + b'K\x01K\x01' * 2_000_000 + b'us.',
        b'\x80\x02\x8b' + struct.pack('<i', 15 * 2**20) + b'\x7f' * 15 * 2**20 + b'.',
        b'\x80\x02X' + struct.pack('<i', 15 * 2**20) + b'x' * 15 * 2**20 + b'.',
        b'\x80\x02}X\x01\x00\x00\x00' + b'a\x8b' + struct.pack('<i', 2**20) + b'\x7f' * 2**20 + b's.',
    ],
)
def test_pickles_that_grow(tmp_path, answers, content):
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=STATE), path)
    rewrite_pickle(path, lambda pickle: content)
    answers(path, ('backbone',))


def test_a_huge_number_where_steps_are_due(tmp_path, answers):
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=STATE, global_step=10**5000, meta=dict(iter=-1), epoch=10**5000), path)
    answers(path, ALL, ALL)


def test_tensors_of_one_memory(tmp_path, answers):
    memory = torch.ones(2**21)
    state = dict(STATE)
    for index in range(2, 500):
        state |= {f'blocks.{index}.mlp.down.weight': memory.view(2**10, 2**11)}
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=state), path)
    assert any('share memory' in line for line in answers(path))
    # Outside the network they cost nothing.
    torch.save(dict(state_dict=STATE, optimizer=[memory.view(2**10, 2**11)[:] for _ in range(500)]), path)
    answers(path, ('backbone', 'inspect', 'convert'), ALL)


@pytest.mark.parametrize('size', [2**38, 2**33])
def test_sparse_files(tmp_path, answers, size):
    rows = (size - 2**20) // (16 * 4)
    tensors = {name: list(tensor.shape) for name, tensor in STATE.items()}
    tensors['label_embed.weight'] = [rows, 16]
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 4 * int(np.prod(shape))
        header[name] = dict(dtype='F32', shape=shape, data_offsets=[position, end])
        position = end
    text = json.dumps(header).encode()
    path = tmp_path / 'a.safetensors'
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        file.truncate(8 + len(text) + position)
    assert all('never written' in line for line in answers(path))
    path = tmp_path / 'b.ckpt'
    torch.save(dict(state_dict=STATE), path)
    content = path.read_bytes()
    with open(path, 'r+b') as file:
        file.truncate(size)
        file.seek(0, 2)
        file.write(content[-200:])
    answers(path)


def header_file(path, header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    'header',
    [
        b'{"a":' * 600 + b'1' + b'}' * 600,
        b'{"a":' + b'[' * 600 + b']' * 600 + b'}',
        b'{"a":' + b'[],' * 2 * 2**20,
        b'[' + b'[],' * 2 * 2**20 + b'[]]',
        b'{"a":1' + b'0' * 10**6 + b'}',
        b'{' + b','.join(b'"%d":1' % i for i in range(500_000)) + b',"1":1}',
        json.dumps({str(i): dict(dtype='F32', shape=[0], data_offsets=[0, 0]) for i in range(120_000)}).encode(),
        json.dumps({'__metadata__': {'pixnerd': '[' + '[],' * 10**6 + '[]]'}}).encode(),
        json.dumps({'__metadata__': {'pixnerd': '{"a":' * 600 + '1' + '}' * 600}}).encode(),
        json.dumps({'__metadata__': {'pixnerd': '{"version":1' + '0' * 10**6 + '}'}}).encode(),
        b'{}' + b' ' * 2**25,
    ],
    ids=range(11),
)
def test_headers_that_grow(tmp_path, answers, header):
    answers(header_file(tmp_path / 'a.safetensors', header), DOOR)


@pytest.mark.parametrize(
    'metadata',
    [
        dict(resolution=10**400),
        dict(sampling=dict(type='EulerFlowSampler', guidance_scale=10**400)),
        dict(sampling=dict(type='EulerFlowSampler', num_steps=10**6)),
        dict(sampling=dict(type='AdamsFlowSampler', num_steps=10_000, order=4)),
        dict(sampling=dict(type='AdamsFlowSampler', num_steps=10, order=10**6)),
        dict(sampling=dict(type='EulerFlowSampler', timeshift=10**400)),
        dict(class_names=['x' * 2**20] * 10),
        dict(architecture=dict(type='PixNerdDiT', dim=10**400, head=dict(type='NeuralFieldHead'))),
        dict(architecture=dict(type='PixNerdDiT', head=dict(type='NeuralFieldHead', num_frequencies=10**9))),
        dict(lora=dict(rank=1, alpha=10**400)),
        dict(version=10**4000),
    ],
    ids=range(11),
)
def test_metadata_out_of_range(tmp_path, answers, metadata):
    path = tmp_path / 'a.safetensors'
    save_file(STATE, path, dict(pixnerd=json.dumps(metadata)))
    answers(path, ('backbone', 'inspect', 'convert', 'pipeline'))
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=STATE, pixnerd=metadata), path)
    answers(path, ('backbone', 'inspect', 'convert', 'pipeline'))


def test_the_metadata_tensor(tmp_path, answers):
    path = tmp_path / 'a.safetensors'
    for tensor in (
        torch.tensor(2**40),
        torch.tensor(7, dtype=torch.uint8),
        torch.ones(3, 3, dtype=torch.uint8),
        torch.ones(3),
        torch.full((9,), 255, dtype=torch.uint8),
        torch.full((5 * 2**20,), 32, dtype=torch.uint8),
        torch.tensor(list(b'[' * 700), dtype=torch.uint8),
    ):
        save_file({**STATE, 'pixnerd_metadata': tensor}, path)
        answers(path, ('backbone', 'inspect', 'convert'))
        with pytest.raises(ValueError, match='metadata'):
            parse_metadata_tensor(tensor)


def test_blocks_of_absurd_numbers(tmp_path, answers):
    path = tmp_path / 'a.safetensors'
    for state in (
        {**STATE, 'blocks.1000000000.norm1.weight': torch.ones(16)},
        {**STATE, 'model.layers.1000000000.x': torch.ones(16)},
        {**to_published(STATE), 'blocks.1000000000.norm.weight': torch.ones(16)},
        {**to_published(STATE), 'blocks.1000000000.param_generator1.0.weight': torch.ones(16)},
        {**STATE, **{f'blocks.{index}.x': torch.ones(1) for index in range(30_000)}},
        {**to_published(STATE), **{f'blocks.{i}.attn.proj.weight': torch.ones(1) for i in range(30_000)}},
    ):
        save_file(state, path)
        answers(path, either=('inspect',))
    qwen = {'model.layers.0.self_attn.q_norm.weight': torch.ones(4), 'model.layers.1000000000.x': torch.ones(4)}
    (tmp_path / 'folder').mkdir()
    save_file(qwen, tmp_path / 'folder/model.safetensors')
    (tmp_path / 'folder/config.json').write_text('{"model_type": "qwen3"}')
    answers(tmp_path / 'folder', ('text_encoder', 'inspect'), ('text_encoder', 'inspect'))


@pytest.mark.parametrize('name', ['a.safetensors', 'a.ckpt', 'model.safetensors.index.json'])
def test_pipes_and_devices_as_the_file(tmp_path, answers, name):
    path = tmp_path / name
    os.mkfifo(path)
    assert all('not a plain file' in line for line in answers(path, ('backbone', 'inspect', 'convert', 'lora')))
    path.unlink()
    path.symlink_to('/dev/zero')
    assert all('not a plain file' in line for line in answers(path, ('backbone', 'inspect', 'convert', 'lora')))


@pytest.mark.parametrize('kind', ['pipe', 'device', 'large', 'deep'])
@pytest.mark.parametrize('name', ['config.json', 'adapter_config.json', 'model.safetensors.index.json'])
def test_pipes_and_devices_as_settings(tmp_path, answers, name, kind):
    folder = tmp_path / 'folder'
    folder.mkdir()
    layer = 'base_model.model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
    if name == 'adapter_config.json':
        save_file(tensors, folder / 'adapter_model.safetensors')
    if kind == 'pipe':
        os.mkfifo(folder / name)
    elif kind == 'device':
        (folder / name).symlink_to('/dev/zero')
    else:
        (folder / name).write_text(' ' * 2**25 if kind == 'large' else '[' * 600 + ']' * 600)
    for reader in ('text_encoder', 'inspect', 'lora', 'backbone', 'pretrained'):
        # A pipe beside a PEFT file is as if it was not there.
        loads = ('lora', 'inspect') if name == 'adapter_config.json' and kind in ('pipe', 'device') else ()
        answers(folder, (reader,), loads)


def test_adapters_that_grow(tmp_path, answers):
    path = tmp_path / 'a.safetensors'
    layer = 'diffusion_model.blocks.0.attn.qkv'
    ones = torch.ones
    for tensors in (
        {f'{layer}.lora_A.weight': torch.tensor(1.0), f'{layer}.lora_B.weight': torch.tensor(1.0)},
        {f'{layer}.lora_A.weight': ones(0, 16), f'{layer}.lora_B.weight': ones(48, 0)},
        {f'{layer}.lora_A.weight': ones(4, 16), f'{layer}.lora_B.weight': ones(48, 4), f'{layer}.alpha': ones(0)},
        {f'{layer}.lora_A.weight': ones(1, 2**20), f'{layer}.lora_B.weight': ones(2**20, 1)},
        {f'{layer}.lokr_w1': ones(2**10, 2**10), f'{layer}.lokr_w2': ones(2**10, 2**10)},
        {f'{layer}.lokr_w1': torch.tensor(1.0), f'{layer}.lokr_w2': ones(48, 16)},
        {f'{layer}.diff': torch.tensor(1.0)},
    ):
        save_file(tensors, path)
        answers(path, ('lora',))


def test_a_file_that_is_as_it_should_be_keeps_the_limits(tmp_path, answers):
    head = dict(type='NeuralFieldHead', width=16)
    net = MODELS.build(
        dict(type='PixNerdDiT', dim=768, depth=4, num_heads=8, patch_size=4, num_classes=30_000, head=head)
    )
    state = net.state_dict()
    path = tmp_path / 'a.safetensors'
    save_file(state, path)
    assert path.stat().st_size > 200 * 2**20
    answers(path, ('backbone', 'inspect', 'convert', 'torch'), ALL)
    path.unlink()
    path = tmp_path / 'a.ckpt'
    torch.save(dict(state_dict=state), path)
    answers(path, ('backbone', 'inspect', 'convert'), ALL)


def test_what_is_no_checkpoint_at_all(tmp_path, answers):
    for content in (b'', b'x', os.urandom(2**20), pickle.dumps([1]), b'PK\5\6' + bytes(18), save({})):
        for name in ('a.safetensors', 'a.ckpt'):
            (tmp_path / name).write_bytes(content)
            answers(tmp_path / name)


def test_the_published_layout_is_read_by_all(tmp_path, answers):
    path = save_lightning(tmp_path / 'a.ckpt', STATE, STATE, {})
    answers(path, ALL, ALL)
    save_file(prefixed('ema_denoiser.', to_published(STATE)), tmp_path / 'b.safetensors')
    answers(tmp_path / 'b.safetensors', ('backbone', 'inspect'), ALL)


def test_empty_tensors_that_are_large_along_other_dimensions(tmp_path, answers):
    shape = [2**62, 2**62, 0]
    content = save(STATE)
    length = int.from_bytes(content[:8], 'little')
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for name in ('head.x', 'extra'):
        entry = dict(dtype='F32', shape=shape, data_offsets=[len(data)] * 2)
        path = header_file(tmp_path / 'a.safetensors', {**header, name: entry}, data)
        assert all('no tensor can be' in line for line in answers(path, ALL))


def test_a_scaled_number_that_is_no_matrix(tmp_path, answers):
    path = tmp_path / 'a.safetensors'
    save_file(
        {**STATE, 'x.weight': torch.tensor(1.0).to(torch.float8_e4m3fn), 'x.scale_weight': torch.tensor(1.0)}, path
    )
    assert all('x has a scale' in line for line in answers(path, ALL))


@pytest.mark.parametrize('name', ['\x1b[2J', 'a\n', 'a\0', '\ud800', 'x' * 300])
def test_pieces_whose_name_no_file_has(tmp_path, answers, name):
    path = tmp_path / 'model.safetensors.index.json'
    path.write_text(json.dumps(dict(weight_map=dict(a=f'{name}.safetensors'))))
    answers(path, ('backbone', 'inspect', 'convert'))

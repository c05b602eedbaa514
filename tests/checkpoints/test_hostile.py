"""Files made to do harm: each is refused with one clear line, and nothing of theirs runs."""

import json
import os
import pickle
import resource
import struct
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report
from pixnerd_plugin.checkpoints.lora import apply_lora

from .files import same, save_lightning, save_mmengine, tiny_network, tiny_projector


def refusal(path: Path, load=load_backbone) -> str:
    """The one line with which a file is refused, which must cost next to no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=path.name) as error:
        load(path)
    message = str(error.value)
    assert '\n' not in message
    assert len(message) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, 'more than 300 MB'
    return message


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def everyone(path: Path, folder: Path) -> list:
    """All that reads files, as functions of a path."""
    return [
        load_backbone,
        lambda path: load_backbone(path, 'raw'),
        read_checkpoint,
        report,
        lambda path: convert(path, folder / 'out.safetensors', force=True),
        lambda path: convert(path, folder / 'out.pth', force=True),
    ]


@pytest.mark.parametrize('protocol', [2, 4])
def test_code_in_a_pickle_never_runs(tmp_path, protocol):
    trap, path = tmp_path / 'trap', tmp_path / 'a.ckpt'
    state = tiny_network().state_dict()
    bombs = [Runs(os.system, f'touch {trap}'), Runs(eval, f'open({str(trap)!r}, "w")'), Runs(Path(trap).touch)]
    for bomb in bombs:
        torch.save({'state_dict': bomb, 'optimizer': 1}, path, pickle_protocol=protocol)
        for load in everyone(path, tmp_path):
            assert 'its state_dict is' in refusal(path, load)
        torch.save({'state_dict': {**state, 'patch_embed.bias': bomb}}, path, pickle_protocol=protocol)
        for load in everyone(path, tmp_path):
            assert 'patch_embed.bias is' in refusal(path, load)
        # What the network does not need may be anything.
        content = {'state_dict': state, 'optimizer': bomb, 'list': [bomb, {1: bomb, bomb: bomb}], bomb: 1}
        torch.save(content, path, pickle_protocol=protocol)
        for load in everyone(path, tmp_path):
            load(path)
        assert same(load_backbone(path).state_dict(), state)
        (tmp_path / 'out.safetensors').unlink()
        (tmp_path / 'out.pth').unlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.ckpt']
    assert not trap.exists()


class Settings(SimpleNamespace):
    """What a trainer's own settings are pickled as."""


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_the_network_does_not_need_may_be_anything(tmp_path, protocol):
    state = tiny_network().state_dict()
    odd = dict(
        namespace=Namespace(lr=1),
        own=Settings(a=1),
        path=Path('x'),
        number=np.float32(3),
        array=np.ones(3),
        size=torch.Size([1, 2]),
        set={1, 2},
        frozen=frozenset((1, 2)),
        bytes=bytearray(3),
        device=torch.device('cpu'),
        dtype=torch.float16,
        strided=torch.ones(3, 4).T,
        expanded=torch.ones(1).expand(1000),
        eighths=torch.ones(4).to(torch.float8_e4m3fn),
        complex=torch.ones(2, dtype=torch.complex64),
        sparse=torch.ones(2).to_sparse(),
        counter=Counter('abc'),
        default=defaultdict(list, a=[1]),
        parameter=torch.nn.Parameter(torch.ones(2)),
        big=10**300,
    )
    keys = {(1, (2, 3)): 1, 2.5: 1, None: 1, b'x': 1, True: 1, frozenset((1,)): 1}
    path = tmp_path / 'a.ckpt'
    content = dict(state_dict=state, hyper_parameters=odd, optimizer_states=[odd, keys], callbacks={**keys, **odd})
    torch.save(content, path, pickle_protocol=protocol)
    for load in everyone(path, tmp_path):
        load(path)
    assert same(load_backbone(path).state_dict(), state)
    assert report(path)['ignored'] == ['hyper_parameters', 'optimizer_states', 'callbacks']


def test_what_the_network_needs_stays_strict(tmp_path):
    state = tiny_network().state_dict()
    name = 'blocks.0.attn.qkv.weight'
    for value, reason in (
        (torch.device('cpu'), 'is torch.device'),
        (state[name].to_sparse(), '_rebuild_sparse_tensor'),
        (torch.Size([2]), 'is torch.Size'),
        (bytearray(3), 'bytearray'),
        (state[name].T.contiguous().T, 'not contiguous'),
        (torch.ones(1).expand(48, 16), 'not contiguous'),
        (state[name].to(torch.complex64), 'of a dtype'),
        (state[name].long(), 'floating point'),
    ):
        torch.save({'state_dict': {**state, name: value}}, tmp_path / 'a.ckpt')
        message = refusal(tmp_path / 'a.ckpt')
        assert name in message
        assert reason in message


def test_files_that_are_no_archive(tmp_path):
    path = tmp_path / 'a.ckpt'
    torch.save({'a': torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert 'torch 1.6' in refusal(path)
    for content in (b'', b'x', pickle.dumps(Runs(os.system, 'false')), b'\0' * 1000, b'PK\5\6' + b'\0' * 18):
        path.write_bytes(content)
        refusal(path)
    path.write_bytes(pickle.dumps([1]))
    refusal(path)
    torch.save([1, torch.ones(1)], path)
    assert 'holds a list' in refusal(path)


@pytest.fixture
def archive(tmp_path):
    """Records of a sound checkpoint, and a function that writes them as they are now."""
    state = tiny_network().state_dict()
    path = save_lightning(tmp_path / 'sound.ckpt', state, state, tiny_projector())
    with zipfile.ZipFile(path) as file:
        records = [(name, file.read(name)) for name in file.namelist()]

    def write(records=records, change=lambda info: None, name='a.ckpt'):
        with zipfile.ZipFile(tmp_path / name, 'w') as file:
            for name_, data in records:
                info = zipfile.ZipInfo(name_)
                change(info)
                file.writestr(info, data)
        return tmp_path / name

    load_backbone(write())
    return records, write


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives_that_torch_does_not_write(archive):
    records, write = archive

    def compress(info):
        info.compress_type = zipfile.ZIP_DEFLATED

    def link(info):
        info.external_attr = 0o120777 << 16

    assert 'compressed' in refusal(write(change=compress))
    assert 'link' in refusal(write(change=link))
    assert 'twice' in refusal(write([*records, records[-1]]))
    folder = records[0][0].split('/')[0]
    for name in (
        f'{folder}/../../etc/passwd',
        '/etc/passwd',
        f'{folder}/data/../x',
        f'{folder}/code/run.py',
        'other/data/9',
    ):
        assert 'none of a checkpoint' in refusal(write([*records, (name, b'x')]))
    assert 'it has no data.pkl' in refusal(write([record for record in records if not record[0].endswith('data.pkl')]))
    assert 'data records' in refusal(write([*records, (f'{folder}/data/99999', b'more')]))
    assert 'big-endian' in refusal(write([(n, b'big' if n.endswith('byteorder') else d) for n, d in records]))
    shorter = [(name, data[:-4] if name.endswith('data/3') else data) for name, data in records]
    assert 'differ in size' in refusal(write(shorter))


def test_a_bomb_is_not_unpacked(archive, tmp_path):
    records, _ = archive
    path = tmp_path / 'bomb.ckpt'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, data in records:
            file.writestr(name, bytes(2**28) if name.endswith('data.pkl') else data)
    assert path.stat().st_size < 2**21
    assert 'compressed' in refusal(path)


def test_a_directory_that_claims_too_much(archive):
    _, write = archive
    path = write()
    content = bytearray(path.read_bytes())
    struct.pack_into('<L', content, len(content) - 10, 2**31)
    path.write_bytes(content)
    assert 'its directory claims' in refusal(path)


def test_damaged_data_is_noticed(archive, tmp_path):
    _, write = archive
    content = bytearray(write().read_bytes())
    start = content.index(b'data/5') + 40
    content[start] ^= 1
    path = tmp_path / 'damaged.ckpt'
    path.write_bytes(content)
    assert 'checksum' in refusal(path)


class Lies:
    """Unpickles as a tensor of any shape and stride over a storage that claims any size."""

    def __init__(self, shape, stride, storage):
        self.arguments = (storage, 0, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    ('shape', 'stride'),
    [
        ((2**40,), (0,)),
        ((2**40,), (1,)),
        ((2**31, 2**31, 4), (0, 0, 1)),
        ((-4,), (1,)),
        ((4,), (-1,)),
        ((4, 4), (1, 4)),
    ],
)
def test_lying_shapes_take_no_memory(tmp_path, shape, stride):
    storage = torch.storage.TypedStorage(wrap_storage=torch.UntypedStorage(64), dtype=torch.float32, _internal=True)
    torch.save({'state_dict': {'patch_embed.weight': Lies(shape, stride, storage)}}, tmp_path / 'a.ckpt')
    refusal(tmp_path / 'a.ckpt')


def test_pickles_that_grow_or_nest(archive):
    records, write = archive

    def with_pickle(content):
        return write([(name, content if name.endswith('data.pkl') else data) for name, data in records])

    laughs: list = [0]
    for _ in range(40):
        laughs = [laughs] * 10
    refusal(with_pickle(pickle.dumps({'state_dict': laughs}, protocol=2)))
    refusal(with_pickle(b'\x80\x02' + b'(' * 100_000 + b'l' * 100_000 + b'.'))
    refusal(with_pickle(b'\x80\x02' + b']' * 10 + b'q\x00' * 5 + b'a' * 9 + b'.'))
    circle: dict = {}
    circle['state_dict'] = circle
    refusal(with_pickle(pickle.dumps(circle, protocol=2)))
    refusal(with_pickle(b'\x80\x02cos\nsystem\n.'))
    refusal(with_pickle(b'\x80\x02(S"echo"\nios\nsystem\n.'))
    refusal(with_pickle(b'\x80\x02\x82\x01.'))
    refusal(with_pickle(b'\x80\x02r\xff\xff\xff\x7f.'))
    refusal(with_pickle(b'.' * 2**25))


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

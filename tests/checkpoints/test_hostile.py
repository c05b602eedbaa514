"""Files made to do harm: each is refused with one clear line, and nothing of theirs runs."""

import os
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints import read_checkpoint
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report

from .files import same, save_lightning, tiny_network, tiny_projector
from .refusals import refusal


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

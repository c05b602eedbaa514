"""Thousands of seeded mutations of valid files: a correct load or one clear error, and nothing else."""

import json
import os
import random
import signal
import struct
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pixnerd_plugin import load_backbone
from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.checkpoints.lora import apply_lora
from pixnerd_plugin.checkpoints.text_encoder import open_text_encoder

from .files import prefixed, same, save_lightning, save_mmengine, tiny_network, tiny_projector

# Some 1000 files in all; to look longer, set PIXNERD_FUZZ_ROUNDS (220 gives 3000).
ROUNDS = int(os.environ.get('PIXNERD_FUZZ_ROUNDS', 73))
INTERESTING = (0, 1, -1, 7, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**64 - 1)


def flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 2, 8, 64, len(content)))]


def repeat(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.choice((1, 4, 30, 200))]


def overwrite(content: bytearray, rng: random.Random) -> None:
    code = rng.choice(('<B', '<H', '<L', '<Q'))
    size = struct.calcsize(code)
    if len(content) > size:
        start = rng.randrange(len(content) - size)
        content[start : start + size] = struct.pack(code, rng.choice(INTERESTING) % 2 ** (8 * size))


def swap(content: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 8, 64))
    a, b = (rng.randrange(len(content)) for _ in range(2))
    part_a, part_b = content[a : a + size], content[b : b + size]
    content[a : a + size] = part_b
    content[b : b + len(part_b)] = part_a


MUTATIONS = (flip, cut, repeat, overwrite, swap)


def mutate(content: bytes, rng: random.Random, start: int = 0, end: int | None = None) -> bytes:
    """``content`` with some mutations between ``start`` and ``end``."""
    middle = bytearray(content[start:end])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if middle:
            rng.choice(MUTATIONS)(middle, rng)
    return content[:start] + bytes(middle) + (b'' if end is None else content[end:])


def anywhere(content: bytes, rng: random.Random) -> bytes:
    return mutate(content, rng)


def header_bytes(content: bytes, rng: random.Random) -> bytes:
    """Mutate the header of a safetensors file, mostly keeping its length true."""
    (length,) = struct.unpack('<Q', content[:8])
    header = mutate(content[8 : 8 + length], rng)
    return (
        struct.pack('<Q', len(header) if rng.random() < 0.9 else rng.choice(INTERESTING) % 2**64)
        + header
        + content[8 + length :]
    )


def header_values(content: bytes, rng: random.Random) -> bytes:
    """Change one value of a safetensors header, or of the metadata in it."""
    (length,) = struct.unpack('<Q', content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header.get('__metadata__', {}).get('pixnerd', '{}'))
    change_value(metadata if metadata and rng.random() < 0.5 else header, rng)
    if metadata and isinstance(header.get('__metadata__'), dict):
        header['__metadata__']['pixnerd'] = json.dumps(metadata)
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + content[8 + length :]


def change_value(tree, rng: random.Random) -> None:
    junk = (
        *INTERESTING,
        0.5,
        1e308,
        '',
        'os.system',
        'F16',
        'LinearHead',
        None,
        True,
        [],
        {},
        [[]],
        [1, 2],
        {'type': 'os.system'},
    )
    while True:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        if isinstance(tree[key], dict | list) and tree[key] and rng.random() < 0.8:
            tree = tree[key]
            continue
        action = rng.randrange(3)
        if action == 0:
            tree[key] = rng.choice(junk)
        elif action == 1:
            del tree[key]
        elif isinstance(tree, dict):
            tree[rng.choice((str(key) + 'x', 'blocks.0.norm1.weight', ''))] = tree[key]
        else:
            tree.append(tree[key])
        return


def pickle_bytes(content: bytes, rng: random.Random, path: Path) -> bytes:
    """Mutate the pickle of a torch file, or a record's name, with true checksums around it."""
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in records if name.endswith('data.pkl'))
    if rng.random() < 0.85:
        records[pickle] = mutate(records[pickle], rng)
    else:
        name = rng.choice(list(records))
        records[mutate(name.encode(), rng).decode(errors='replace')] = records.pop(name)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path.read_bytes()


@contextmanager
def limit(seconds: int):
    def stop(signum, frame):
        raise AssertionError(f'more than {seconds} s')

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def attack(path: Path, content: bytes, load: Callable[[Path], dict], label: str) -> dict | None:
    """What ``load`` makes of a file of this content: a state, or None when it was refused as it should be."""
    path.write_bytes(content)
    before = sorted(path.parent.rglob('*'))
    state, refusal = None, None
    try:
        with limit(20):
            state = load(path)
    except (ValueError, FileNotFoundError) as error:
        refusal = str(error)
    except Exception as error:
        raise AssertionError(f'{label}: {type(error).__name__}: {error}') from error
    if refusal is not None:
        assert '\n' not in refusal, label
        assert len(refusal) < 1000, label
        assert str(path.parent) in refusal, f'{label}: {refusal}'
    assert sorted(path.parent.rglob('*')) == before, label
    return state


def load_state(path: Path) -> dict:
    net = load_backbone(path)
    state = net.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert sum(tensor.numel() for tensor in state.values()) < 10**6
    return state


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """Valid files, by name."""
    folder = tmp_path_factory.mktemp('sound')
    net = tiny_network()
    ema, raw = net.state_dict(), tiny_network(seed=1).state_dict()
    metadata = dict(
        version=1, architecture=net.architecture(), weights='ema', resolution=32, class_names=['a', 'b', 'c']
    )
    metadata |= dict(sampling=dict(type='AdamsFlowSampler', num_steps=4, order=2, guidance_interval=[0.1, 1.0]))
    text = tiny_network('text').state_dict()
    lightning = save_lightning(folder / 'a.ckpt', ema, raw, tiny_projector())
    mmengine = save_mmengine(folder / 'a.pth', ema, raw, tiny_projector(), metadata)
    return {
        'ours.safetensors': save(ema, {'pixnerd': json.dumps(metadata)}),
        'published.safetensors': save(prefixed('ema_denoiser.', to_published(text))),
        'lightning.ckpt': lightning.read_bytes(),
        'mmengine.pth': mmengine.read_bytes(),
    }


@pytest.mark.parametrize('name', ['ours.safetensors', 'published.safetensors'])
@pytest.mark.parametrize('change', [anywhere, header_bytes, header_values])
def test_safetensors(tmp_path, sound, name, change):
    content, rng = sound[name], random.Random(f'{name} {change.__name__}')
    expected = attack(tmp_path / name, content, load_state, 'unchanged')
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    refused = 0
    for index in range(ROUNDS):
        state = attack(tmp_path / name, change(content, rng), load_state, f'{name} {change.__name__} {index}')
        refused += state is None
        # The format has no checksums, but the right tensors are all there.
        assert state is None or {name: tensor.shape for name, tensor in state.items()} == shapes
    assert refused > ROUNDS / 5


@pytest.mark.parametrize('name', ['lightning.ckpt', 'mmengine.pth'])
def test_torch_files(tmp_path, sound, name):
    content, rng = sound[name], random.Random(name)
    expected = attack(tmp_path / name, content, load_state, 'unchanged')
    directory = content.rindex(b'PK\6\6') if b'PK\6\6' in content else content.rindex(b'PK\5\6')
    first = content.index(b'PK\1\2')
    for index in range(ROUNDS):
        # A third in the directory, which is small beside the data.
        start, end = rng.choice(((0, None), (0, None), (first, directory + 100)))
        changed = mutate(content, rng, start, end)
        state = attack(tmp_path / name, changed, load_state, f'{name} {index}')
        # Every byte that is read has a checksum.
        assert state is None or same(state, expected), index


@pytest.mark.filterwarnings('ignore:Duplicate name', 'ignore:invalid escape')
@pytest.mark.parametrize('name', ['lightning.ckpt', 'mmengine.pth'])
def test_pickles(tmp_path, sound, name):
    content, rng = sound[name], random.Random(f'pickle {name}')
    shapes = {k: t.shape for k, t in attack(tmp_path / name, content, load_state, 'unchanged').items()}
    scratch = tmp_path / 'scratch.zip'
    for index in range(ROUNDS):
        changed = pickle_bytes(content, rng, scratch)
        state = attack(tmp_path / name, changed, load_state, f'pickle {name} {index}')
        assert state is None or {k: t.shape for k, t in state.items()} == shapes


@pytest.mark.parametrize('change', [anywhere, header_bytes, header_values])
def test_adapters(tmp_path, change):
    net = tiny_network()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    layer = 'diffusion_model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
    content, rng = save({**tensors, f'{layer}.alpha': torch.tensor(2.0)}), random.Random(change.__name__)

    def load(path: Path) -> dict:
        net.load_state_dict(state)
        apply_lora(net, path, 0.5)
        return net.state_dict()

    for index in range(ROUNDS):
        changed = attack(tmp_path / 'a.safetensors', change(content, rng), load, f'adapter {change.__name__} {index}')
        if changed is None:
            assert same(net.state_dict(), state), 'a refused adapter changes nothing'


def test_folders(tmp_path):
    """A diffusers folder and the index of a sharded text encoder."""
    state = prefixed('ema_denoiser.', to_published(tiny_network().state_dict()))
    (tmp_path / 'model/transformer').mkdir(parents=True)
    weights = tmp_path / 'model/transformer/diffusion_pytorch_model.safetensors'
    content, rng = save(state), random.Random('folder')
    for index in range(ROUNDS // 4):
        attack(weights, header_values(content, rng), lambda path: load_state(tmp_path / 'model'), f'folder {index}')

    folder = tmp_path / 'text'
    folder.mkdir()
    (folder / 'a.safetensors').write_bytes(save({'x': torch.ones(2), 'y': torch.ones(3)}))
    index_file = json.dumps(dict(weight_map=dict(x='a.safetensors', y='a.safetensors'))).encode()
    path = folder / 'model.safetensors.index.json'
    for index in range(ROUNDS):
        attack(path, mutate(index_file, rng), lambda path: open_text_encoder(folder), f'index {index}')

"""Every field of every format of data and evaluation, set to what it must not be: a right load or one clear line.

Each format is a tree of all its fields, ``build`` makes a file of it, and ``load`` reads all that the file offers.
PIXNERD_FUZZ_FILES=1000 tries so many mutations of each format instead of 60.
"""

from __future__ import annotations

import collections
import functools
import json
import logging
import math
import os
import random
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from pixnerd_plugin.datasets import CaptionFolder, ShardDataset, TooManyDamaged
from pixnerd_plugin.datasets.shard_scan import scan_shard
from pixnerd_plugin.datasets.shards import Shard, write_shard_index
from pixnerd_plugin.evaluation import text_benchmarks
from pixnerd_plugin.evaluation.classifier import METADATA_KEY, ClassifierFeatures, SmallConvNet
from pixnerd_plugin.evaluation.pictures import open_images
from pixnerd_plugin.evaluation.quality import open_reference
from pixnerd_plugin.evaluation.store import SampleStore
from pixnerd_plugin.models.conditioners import LabelConditioner
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore, caption_key
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, FieldTrajectory
from tests.evaluation.fakes import TinyFeatures, statistics
from tests.limits import SECONDS, limited
from tests.mutations import encode, sample

ROUNDS = int(os.environ.get('PIXNERD_FUZZ_FILES', 60))


class Format(NamedTuple):
    name: str
    tree: dict[str, Any]
    build: Callable[[Any], bytes]
    load: Callable[[Path], Any]


def number(value: Any) -> int:
    """What of a mutated value fits into a binary field."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else 2**64 - 1
    return len(value) if value is not None else 0


def pack(code: str, *values: Any) -> bytes:
    sizes = [8 * struct.calcsize(f'<{letter}') for letter in code]
    return struct.pack(f'<{code}', *(number(value) % 2**size for value, size in zip(values, sizes, strict=True)))


def raw(value: Any) -> bytes:
    """A mutated text as bytes."""
    return value.encode('utf-8', 'surrogatepass') if isinstance(value, str) else encode(value).encode()


def safetensors_tree(content: bytes, key: str | None) -> tuple[dict, bytes]:
    """The header and the description in the metadata, as one tree, and the data."""
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop('__metadata__')
    # In one order, so that a seed means the same mutations.
    header = dict(sorted(header.items()))
    return dict(header=header, metadata=json.loads(metadata[key]) if key else metadata), content[8 + length :]


def build_safetensors(data: bytes, key: str | None) -> Callable[[Any], bytes]:
    def build(tree: Any) -> bytes:
        header = tree
        if isinstance(tree, dict) and isinstance(tree.get('header'), dict):
            metadata = tree.get('metadata')
            header = dict(tree['header'], __metadata__={key: encode(metadata)} if key else metadata)
        text = raw(encode(header))
        return len(text).to_bytes(8, 'little') + text + data

    return build


def field_format(folder: Path) -> Format:
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=8, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=5, head=head))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    noise = torch.randn(1, 3, 8, 12)
    _, field = AdamsFlowSampler(3).sample(net, noise, torch.tensor([1]), torch.tensor([5]), record_field=True)
    field.save(folder / 'field.safetensors')
    tree, data = safetensors_tree((folder / 'field.safetensors').read_bytes(), 'pixnerd_field')

    def load(path: Path) -> None:
        FieldTrajectory.load(path).decode()

    return Format('field.safetensors', tree, build_safetensors(data, 'pixnerd_field'), load)


def embedding_format(folder: Path) -> Format:
    captions = ['a', 'b', 'c']
    keys = torch.tensor([list(caption_key(caption)) for caption in captions], dtype=torch.uint8)
    settings = dict(model='Qwen3-1.7B', max_length='4', dtype='bfloat16')
    content = save(dict(embeds=torch.ones(3, 4, 2, dtype=torch.bfloat16), keys=keys), settings)
    tree, data = safetensors_tree(content, None)

    def load(path: Path) -> None:
        store = TextEmbeddingStore(path.parent)
        for caption in captions:
            if caption in store:
                assert store[caption].ndim == 2

    return Format('embeds.safetensors', tree, build_safetensors(data, None), load)


def classifier_format(folder: Path) -> Format:
    description = json.dumps(dict(class_names=['a', 'b', 'c'], size=[8, 8], accuracy=0.5))
    tree, data = safetensors_tree(save(SmallConvNet(3).state_dict(), {METADATA_KEY: description}), METADATA_KEY)

    def load(path: Path) -> None:
        extractor = ClassifierFeatures(path)
        extractor(torch.zeros(1, 3, *extractor.description['size'], dtype=torch.uint8))

    return Format('classifier.safetensors', tree, build_safetensors(data, METADATA_KEY), load)


def tar_member(member: dict) -> bytes:
    content = raw(member.get('content'))
    block = bytearray(512)
    name = raw(member.get('name'))[:100]
    block[: len(name)] = name
    size = member.get('size')
    encoded = raw(size)[:12] if isinstance(size, str) else b'\x80' + pack('Q', size)[::-1].rjust(11, b'\0')
    block[124 : 124 + len(encoded)] = encoded
    block[148:156] = b' ' * 8
    block[156:157] = raw(member.get('kind'))[:1]
    magic, prefix = raw(member.get('magic'))[:8], raw(member.get('prefix'))[:155]
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    checksum = member.get('checksum')
    total = sum(block) if checksum == 'true' else number(checksum) % 8**6
    block[148:156] = f'{total:06o}\0 '.encode()
    return bytes(block) + content + bytes(-len(content) % 512)


def build_tar(tree: Any) -> bytes:
    members = tree.get('members') if isinstance(tree, dict) else tree
    members = members if isinstance(members, list) else [members]
    return b''.join(tar_member(m) if isinstance(m, dict) else raw(m) for m in members) + bytes(1024)


def tar_format(folder: Path) -> Format:
    def member(name: str, content: str, kind: str = '0') -> dict:
        more = dict(kind=kind, magic='ustar\x0000', prefix='', checksum='true')
        return dict(name=name, size=f'{len(content):011o}', content=content, **more)

    members = [
        member('a.png', 'picture'),
        member('a.txt', 'caption'),
        member('x', '20 path=folder/b.png\n'[: len('20 path=folder/b.png\n')], 'x'),
        member('b.png', 'picture'),
        member('x', 'folder/b.json\0', 'L'),
        member('b.json', '{"caption": ["one", "two"]}'),
    ]

    def load(path: Path) -> None:
        pairs, problems = scan_shard(str(path))
        for pair in pairs:
            assert pair['image_offset'] + pair['image_size'] <= path.stat().st_size
        assert all(problem.where.isprintable() for problem in problems)

    return Format('a.tar', dict(members=members), build_tar, load)


def index_format(folder: Path) -> Format:
    picture = folder / 'picture.png'
    Image.new('RGB', (8, 8)).save(picture)
    members = [
        dict(name=f'{i}{suffix}', kind='0', magic='', prefix='', checksum='true')
        for i in range(2)
        for suffix in ('.png', '.txt')
    ]
    content = b''
    for m in members:
        encoded = picture.read_bytes() if m['name'].endswith('.png') else b'text'
        block = tar_member(dict(m, size=f'{len(encoded):011o}', content=''))
        content += block + encoded + bytes(-len(encoded) % 512)
    (folder / '0.tar').write_bytes(content + bytes(1024))
    pairs, _ = scan_shard(str(folder / '0.tar'))
    write_shard_index(str(folder / 'index'), [(Shard('0.tar', (folder / '0.tar').stat().st_size, len(pairs)), pairs)])
    found = (folder / 'index').read_bytes()
    length = int.from_bytes(found[-16:-8], 'little')
    footer = json.loads(found[-16 - length : -16])
    tree = dict(footer=footer, records=[list(pair.item()) for pair in pairs], length=None, magic='PNSHARD1', crc='true')

    def build(tree: Any) -> bytes:
        if not isinstance(tree, dict):
            return raw(tree)
        records, footer = tree.get('records'), tree.get('footer')
        rows = [r for r in (records if isinstance(records, list) else []) if isinstance(r, list) and len(r) == 8]
        encoded = b''.join(pack('LLLLQQ', *row[:6]) for row in rows)
        shapes = b''.join(pack('HH', *row[6:]) for row in rows)
        if tree.get('crc') == 'true' and isinstance(footer, dict):
            if footer.get('records_crc32') == known['records_crc32']:
                footer = dict(footer, records_crc32=zlib.crc32(encoded).to_bytes(4, 'little').hex())
            if footer.get('shapes_crc32') == known['shapes_crc32']:
                footer = dict(footer, shapes_crc32=zlib.crc32(shapes))
        text = raw(encode(footer))
        length = tree.get('length')
        return encoded + shapes + text + pack('Q', len(text) if length is None else length) + raw(tree.get('magic'))

    known = footer

    def load(path: Path) -> None:
        dataset = ShardDataset(str(folder), str(path), pipeline=[dict(type='LoadRGB')], max_damaged=1.0)
        assert dataset.all_shapes().shape == (len(dataset), 2)
        for i in range(min(len(dataset), 4)):
            assert dataset[i]['img'].shape == (8, 8, 3)

    return Format('pairs.index', tree, build, load)


def zip_tree(arrays: dict[str, np.ndarray]) -> tuple[dict, dict[str, bytes]]:
    entries, data = [], {}
    for name, array in arrays.items():
        header = dict(descr=array.dtype.str, fortran_order=False, shape=list(array.shape))
        fields = dict(flags=0, method=0, crc=None, packed=None, size=None)
        entries.append(
            dict(name=f'{name}.npy', array=name, header=header, magic='\x01', offset=None, **fields, local={})
        )
        data[name] = array.tobytes()
    return dict(entries=entries, end=dict(count=None, size=None, offset=None, comment='')), data


def build_zip(data: dict[str, bytes]) -> Callable[[Any], bytes]:
    def build(tree: Any) -> bytes:
        if not isinstance(tree, dict):
            return raw(tree)
        content, directory = b'', b''
        entries = tree.get('entries')
        entries = [entry for entry in (entries if isinstance(entries, list) else []) if isinstance(entry, dict)]
        for entry in entries:
            header = entry.get('header')
            if isinstance(header, dict) and isinstance(header.get('shape'), list):
                header = dict(header, shape=tuple(header['shape']))
            text = repr(header).encode('utf-8', 'backslashreplace')
            version = (raw(entry.get('magic')) or b'\0')[:1]
            length = (
                len(text).to_bytes(2 if version == b'\1' else 4, 'little')
                if len(text) < 2**16 or version != b'\1'
                else b'\xff\xff'
            )
            body = b'\x93NUMPY' + version + b'\0' + length + text + data.get(str(entry.get('array')), b'')
            crc = zlib.crc32(body) if entry.get('crc') is None else entry['crc']
            packed = len(body) if entry.get('packed') is None else entry['packed']
            size = len(body) if entry.get('size') is None else entry['size']
            name = raw(entry.get('name'))[: 2**16 - 1]
            common = pack('HHHHLLLHH', entry.get('flags'), entry.get('method'), 0, 33, crc, packed, size, len(name), 0)
            offset = len(content) if entry.get('offset') is None else entry['offset']
            directory += b'PK\1\2' + pack('HH', 20, 20) + common + pack('HHHLL', 0, 0, 0, 0, offset) + name
            content += b'PK\3\4' + pack('H', 20) + common + name + body
        end = tree.get('end') if isinstance(tree.get('end'), dict) else {}
        count, size, offset = (
            known if end.get(key) is None else end[key]
            for key, known in (('count', len(entries)), ('size', len(directory)), ('offset', len(content)))
        )
        comment = raw(end.get('comment', ''))[: 2**16 - 1]
        return (
            content + directory + b'PK\5\6' + pack('HHHHLLH', 0, 0, count, count, size, offset, len(comment)) + comment
        )

    return build


def npz_format(folder: Path) -> Format:
    tree, data = zip_tree(dict(arr_0=np.zeros((20, 8, 8, 3), np.uint8)))

    def load(path: Path) -> None:
        assert sum(len(batch) for batch in open_images(path).batches(7)) > 0

    return Format('samples.npz', tree, build_zip(data), load)


def statistics_format(folder: Path) -> Format:
    tree, data = zip_tree(statistics(np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)))

    def load(path: Path) -> None:
        open_reference(str(path), (8, 8), TinyFeatures('Inception'))

    return Format('reference.npz', tree, build_zip(data), load)


def npy_format(folder: Path) -> Format:
    tree, data = zip_tree(dict(arr_0=np.zeros((5, 8, 8, 3), np.uint8)))

    def build(tree: Any) -> bytes:
        content = build_zip(data)(tree)
        start = content.find(b'\x93NUMPY')
        return content[start : content.find(b'PK\1\2')] if start >= 0 else content

    def load(path: Path) -> None:
        store = SampleStore(path.parent.parent, {}, 5)
        store.finish()
        store.npz.unlink()
        path.parent.mkdir()

    return Format('00000000_00000005.npy', tree, build, load)


def text_format(name: str, tree: Any, load: Callable[[Path], Any]) -> Callable[[Path], Format]:
    def build(tree: Any) -> bytes:
        lines = tree if name.endswith('.jsonl') and isinstance(tree, list) else [tree]
        return b'\n'.join(raw(encode(line)) for line in lines)

    return lambda folder: Format(name, tree, build, load)


@functools.cache
def caption_folder(folder: Path) -> CaptionFolder:
    return CaptionFolder(str(folder))


def load_captions(path: Path) -> None:
    captions = caption_folder(path.parent).captions(0)
    assert all(caption.encode() for caption in captions if caption)


def load_names(path: Path) -> None:
    names = json.loads(path.read_text()) if path.stat().st_size < 10**5 else path.read_text()
    LabelConditioner(3, names if not isinstance(names, str) else [names])


RUN = dict(run=dict(seed=1, weights='a', size=[8, 8]), prompts={'00000': 'a cat'})
FORMATS = [
    field_format,
    embedding_format,
    classifier_format,
    index_format,
    tar_format,
    npz_format,
    statistics_format,
    npy_format,
    text_format('samples.json', dict(run=RUN['run']), lambda path: SampleStore(path.parent, RUN['run'], 5).claim()),
    text_format('run.json', RUN, lambda path: text_benchmarks.claim(path.parent, dict(seed=1), [], overwrite=True)),
    text_format(
        'prompts.jsonl', dict(prompt='a', tag='b', include=[dict(count=1)]), text_benchmarks.read_geneval_prompts
    ),
    text_format(
        'results.jsonl',
        [dict(tag=task, correct=True) for task in text_benchmarks.GENEVAL_TASKS],
        text_benchmarks.read_geneval_scores,
    ),
    text_format('a.json', dict(caption=['a', 'b'], more=1), load_captions),
    text_format('names.json', ['a', 'b', 'c'], load_names),
]


def attack(kind: Format, path: Path, rounds: int) -> dict[str, int]:
    """Read so many mutations; in the child, whose memory is limited. The outcomes are counted."""
    logging.disable(logging.CRITICAL)
    counts: collections.Counter[str] = collections.Counter()
    for label, tree in sample(kind.tree, rounds, random.Random(kind.name)):
        path.write_bytes(kind.build(tree))
        signal.alarm(SECONDS)
        try:
            kind.load(path)
            counts['loaded'] += 1
        except (ValueError, FileNotFoundError, TooManyDamaged) as error:
            message = str(error)
            assert message.isprintable(), f'{label}: {message!r}'
            assert len(message) < 1000, f'{label}: {message}'
            counts['refused'] += 1
        except BaseException as error:
            raise AssertionError(f'{label}: {type(error).__name__}: {error}') from error
        leftovers = [found.name for found in path.parent.iterdir() if found.name.startswith('.tmp-')]
        assert not leftovers, f'{label}: {leftovers}'
        assert not {'evil', 'evilmod'} & sys.modules.keys(), label
    return dict(counts)


@pytest.mark.parametrize('make', FORMATS)
def test_mutations_end_in_a_load_or_in_one_line(tmp_path, make):
    (tmp_path / 'sound').mkdir()
    kind = make(tmp_path / 'sound')
    folder = tmp_path / 'mutated/parts'
    folder.mkdir(parents=True)
    if kind.name == 'a.json':
        Image.new('RGB', (8, 8)).save(folder / 'a.png')
    path = folder / kind.name
    path.write_bytes(kind.build(kind.tree))
    kind.load(path)
    outcome = limited(lambda: attack(kind, path, ROUNDS), 0, seconds=10 * SECONDS + ROUNDS)
    assert not outcome.signal, f'died of signal {outcome.signal}'
    assert outcome.value, f'{outcome.error}: {outcome.message}'
    print(f'{kind.name}: {outcome.value}')
    assert sum(outcome.value.values()) == ROUNDS
    assert not list((tmp_path / 'mutated').glob('*.tmp-*'))

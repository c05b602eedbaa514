"""Every field of every format of data and evaluation, set to what it must not be: a right load or one clear line.

Each format is a tree of all its fields, ``build`` makes a file of it, and ``load`` reads all that the file offers.
PIXNERD_FUZZ_FILES=1000 tries so many mutations of each format instead of 60.
"""

from __future__ import annotations

import collections
import functools
import json
import logging
import os
import random
import signal
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
from tests.containers import build_safetensors, build_tar, build_zip, pack, raw, safetensors_tree, tar_member, zip_tree
from tests.evaluation.fakes import TinyFeatures, statistics
from tests.limits import SECONDS, limited
from tests.mutations import encode, sample

ROUNDS = int(os.environ.get('PIXNERD_FUZZ_FILES', 60))


class Format(NamedTuple):
    name: str
    tree: dict[str, Any]
    build: Callable[[Any], bytes]
    load: Callable[[Path], Any]


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

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pixnerd_plugin.datasets.shard_scan import scan_shard
from pixnerd_plugin.datasets.shards import SCANNED, Shard, ShardIndex, ShardReader, write_shard_index
from pixnerd_plugin.registry import DATA_SAMPLERS, DATASETS
from tests.training import run_tool

TOOL = Path(__file__).parents[2] / 'tools' / 'build_shard_index.py'
PIPELINE = [
    dict(type='LoadRGB'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomCaption'),
    dict(type='PackInputs'),
]


def write_tar(path: Path, members: list[tuple[str, bytes]], **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', **kwargs) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = 0.5  # makes the pax format write an extra header, as webdataset's writer does
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def png(tmp_path, picture):
    return lambda seed: picture(tmp_path / 'one.png', seed=seed, size=(8, 8)).read_bytes()


@pytest.fixture
def shards(tmp_path, png):
    """Three shards of 4, 5 and 6 pairs, two captions each."""
    for shard in range(3):
        members = []
        for i in range(4 + shard):
            members.append((f'{i:04d}.png', png(10 * shard + i)))
            members.append((f'{i:04d}.txt', f'caption {shard} {i}\nother {shard} {i}'.encode()))
        write_tar(tmp_path / 'shards' / f'{shard:05d}.tar', members)
    return tmp_path / 'shards'


def build_index(*args, check=True):
    done = run_tool(sys.executable, TOOL, *args, '--workers', '1')
    assert done.returncode == 0 or not check, done.stderr
    return done


def shard_dataset(root, index, pipeline=PIPELINE, **kwargs):
    return DATASETS.build(dict(type='ShardDataset', data_root=str(root), index=str(index), pipeline=pipeline, **kwargs))


def index_of(root, out):
    paths = sorted(root.glob('*.tar'))
    scans = [(path, scan_shard(str(path))[0]) for path in paths]
    write_shard_index(str(out), ((Shard(p.name, p.stat().st_size, len(pairs)), pairs) for p, pairs in scans))
    return out


def test_the_tool_indexes_what_the_dataset_reads(shards, tmp_path, png):
    index = tmp_path / 'pairs.index'
    assert '15 pairs; no problems' in build_index(shards, index).stdout
    dataset = shard_dataset(shards, index, [dict(type='LoadRGB'), dict(type='PackInputs')])
    assert len(dataset) == 15
    assert dataset.shard_sizes.tolist() == [4, 5, 6]
    plain = DATASETS.build(dict(type='pixnerd.CaptionFolder', data_root=_unpacked(shards, tmp_path), pipeline=PIPELINE))
    for i in range(15):
        assert torch.equal(dataset[i]['inputs'], _without_flip(plain, i))
        assert dataset.get_data_info(i)['captions'] == plain.get_data_info(i)['captions']
    assert sorted(os.listdir(tmp_path)) == ['one.png', 'pairs.index', 'shards', 'unpacked']


def _unpacked(shards, tmp_path):
    for path in shards.glob('*.tar'):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / 'unpacked' / path.stem, filter='data')
    return str(tmp_path / 'unpacked')


def _without_flip(dataset, i):
    results = dataset.get_data_info(i)
    for step in (dataset.pipeline.transforms[0], dataset.pipeline.transforms[-1]):
        results = step(results)
    return results['inputs']


def test_the_tool_takes_a_glob(shards, tmp_path):
    build_index(f'{shards}/0000[12].tar', tmp_path / 'index')
    assert [shard.name for shard in ShardIndex(str(tmp_path / 'index')).shards] == ['00001.tar', '00002.tar']


def test_the_tool_ends_its_workers_where_sigterm_is_handled(shards, tmp_path):
    # As in a process that trains. Workers that inherit the handler would outlive the end of their pool.
    program = f"""
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: None)
sys.path.insert(0, {str(TOOL.parent)!r})
from build_shard_index import build_index
for number in range(5):
    build_index({str(shards)!r}, {str(tmp_path)!r} + f'/index{{number}}', workers=2)
"""
    assert run_tool(sys.executable, '-c', program).returncode == 0


def test_the_tool_fails_in_one_line_and_leaves_nothing(tmp_path, png):
    failed = build_index(tmp_path / 'nowhere', tmp_path / 'index', check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith('error: no shards in ')
    assert failed.stderr.count('\n') == 1
    write_tar(tmp_path / 'empty' / 'a.tar', [('a.txt', b'alone')])
    failed = build_index(tmp_path / 'empty', tmp_path / 'index', check=False)
    assert failed.returncode == 1
    assert 'error: no pictures in the 1 shards' in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['empty']


@pytest.mark.parametrize('tar_format', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_paired_by_their_name_up_to_the_first_dot(tmp_path, png, tar_format):
    long = 'x' * 90
    members = [
        ('a/1.JPG', b'A'),
        ('a/1.txt', b'first'),
        ('b/1.png', b'B'),
        ('b/1.json', b'{"caption": "second"}'),
        (f'b/{long}.png', b'CC'),
        (f'b/{long}.txt', b'third'),
        ('b/1.cls', b'7'),
    ]
    path = write_tar(tmp_path / 'a.tar', members, format=tar_format)
    pairs, problems = scan_shard(str(path))
    assert problems == [('not used', '.cls', 1)]
    content = path.read_bytes()
    images = [content[p['image_offset'] : p['image_offset'] + p['image_size']] for p in pairs]
    assert images == [b'A', b'B', b'CC']
    captions = [content[p['caption_offset'] : p['caption_offset'] + p['caption_size']] for p in pairs]
    assert captions == [b'first', b'{"caption": "second"}', b'third']
    assert pairs['caption_kind'].tolist() == [1, 2, 1]


def test_faulty_captions_and_names_are_listed_and_survived(tmp_path):
    path = write_tar(
        tmp_path / 'a.tar',
        [
            ('fine.png', b'1'),
            ('fine.txt', b'fine'),
            ('none.png', b'2'),
            ('latin.png', b'3'),
            ('latin.txt', 'café'.encode('latin-1')),
            ('alone.txt', b'no picture'),
            ('../up.png', b'4'),
            ('/root.png', b'5'),
            ('fine.jpg', b'6'),
        ],
    )
    with tarfile.open(path, 'a') as tar:
        link = tarfile.TarInfo('link.png')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    pairs, problems = scan_shard(str(path))
    assert pairs['caption_kind'].tolist() == [1, 0, 0]
    assert sorted(problem.kind for problem in problems) == [
        'caption without a picture',
        'ignored member',
        'ignored member',
        'ignored member',
        'missing caption',
        'repeated name',
        'unreadable caption',
    ]
    assert {'latin.png' in problem.where for problem in problems if problem.kind == 'unreadable caption'} == {True}


def test_a_shard_cut_short_keeps_its_whole_members(shards):
    path = shards / '00000.tar'
    whole, _ = scan_shard(str(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(whole[2]['image_offset']) + 20])
    pairs, problems = scan_shard(str(path))
    assert np.array_equal(pairs, whole[:2])
    assert [problem.kind for problem in problems] == ['broken member']
    assert '0002.png: cut short' in problems[0].where


def test_a_broken_header_loses_its_member_only(tmp_path):
    members = [(f'{i}.png', bytes([i]) * 700) for i in range(4)]
    path = write_tar(tmp_path / 'a.tar', members, format=tarfile.USTAR_FORMAT)
    whole, _ = scan_shard(str(path))
    content = bytearray(path.read_bytes())
    header = int(whole[1]['image_offset']) - 512
    content[header : header + 20] = os.urandom(20)
    path.write_bytes(content)
    pairs, problems = scan_shard(str(path))
    assert np.array_equal(pairs, whole[[0, 2, 3]])
    assert next(problem for problem in problems if problem.kind == 'broken member').where == f'header at byte {header}'


@pytest.mark.parametrize('content', [b'', b'no tar at all' * 200, b'\0' * 10240])
def test_what_is_no_tar_has_no_pairs(tmp_path, content):
    (tmp_path / 'a.tar').write_bytes(content)
    pairs, problems = scan_shard(str(tmp_path / 'a.tar'))
    assert len(pairs) == 0
    assert pairs.dtype == SCANNED
    assert len(problems) == (0 if content.startswith(b'\0') else 1)


def test_a_cut_index_is_refused(shards, tmp_path):
    index = index_of(shards, tmp_path / 'index')
    content = index.read_bytes()
    footer = content.index(b'{"shards"')
    unreadable = content[:footer] + b'?' + content[footer + 1 :]
    for damaged in (content[:-1], content[:50], b'', content[32:], unreadable):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'build it with tools/build_shard_index\.py again'):
            ShardIndex(str(index))
    with pytest.raises(FileNotFoundError, match='no shard index'):
        ShardIndex(str(tmp_path / 'none'))


def test_other_shards_than_the_indexed_are_refused(shards, tmp_path):
    index = index_of(shards, tmp_path / 'index')
    with open(shards / '00001.tar', 'ab') as file:
        file.write(b'\0')
    with pytest.raises(ValueError, match=r'00001\.tar.* has \d+ bytes, not \d+'):
        shard_dataset(shards, index)
    (shards / '00001.tar').unlink()
    with pytest.raises(ValueError, match='is missing'):
        shard_dataset(shards, index)


def test_a_shard_that_shrinks_later_is_damage(shards, tmp_path):
    dataset = shard_dataset(shards, index_of(shards, tmp_path / 'index'), max_damaged=0.9)
    os.truncate(shards / '00002.tar', 512)
    assert dataset[14]['data_samples']['sample_idx'] < 9
    assert dataset.num_damaged >= 1


def test_the_reader_keeps_few_files_open_and_none_when_pickled(tmp_path):
    paths = []
    for i in range(5):
        paths.append(str(tmp_path / str(i)))
        (tmp_path / str(i)).write_bytes(bytes([i]) * 4)
    reader = ShardReader(paths, max_open=2)
    for i in [0, 1, 2, 3, 4, 0, 1]:
        assert reader.read(i, 1, 2) == bytes([i]) * 2
        assert len(reader._open) <= 2
    assert pickle.loads(pickle.dumps(reader)).read(3, 0, 1) == b'\3'
    with pytest.raises(OSError, match='ends before byte 5'):
        reader.read(0, 2, 3)


def test_the_dataset_is_pickled_without_its_pairs(shards, tmp_path):
    dataset = shard_dataset(shards, index_of(shards, tmp_path / 'index'))
    copy = pickle.loads(pickle.dumps(dataset.index))
    assert np.array_equal([copy[i] for i in range(len(copy))], [dataset.index[i] for i in range(len(copy))])
    assert copy.fingerprint == dataset.index.fingerprint
    assert len(pickle.dumps(dataset.index)) < 1000


def test_shuffled_shards_resume_exactly_with_and_without_workers(shards, tmp_path):
    dataset = shard_dataset(shards, index_of(shards, tmp_path / 'index'))

    def batches(start, count, workers):
        cfg = dict(type='ResumableSampler', dataset=dataset, seed=1, shards_per_block=2)
        sampler = DATA_SAMPLERS.build(cfg)
        sampler.skip(start * 4)
        loader = iter(DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers))
        return [next(loader) for _ in range(count)]

    uninterrupted = batches(0, 9, 0)
    assert {text.split()[0] for batch in uninterrupted for text in batch['data_samples']['text']} == {
        'caption',
        'other',
    }
    for resumed, expected in zip(batches(4, 5, 2), uninterrupted[4:], strict=True):
        assert torch.equal(resumed['inputs'], expected['inputs'])
        assert resumed['data_samples']['text'] == expected['data_samples']['text']


def test_subsets_are_refused(shards, tmp_path):
    with pytest.raises(NotImplementedError, match='no subsets'):
        shard_dataset(shards, index_of(shards, tmp_path / 'index'), indices=3)

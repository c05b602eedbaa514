"""Data as people have it: nothing of it is dropped or refused without a word."""

import contextlib
import io
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pixnerd_plugin.datasets import decode
from pixnerd_plugin.datasets.captions import parse_captions
from pixnerd_plugin.datasets.image_folder import list_files
from pixnerd_plugin.datasets.shard_scan import scan_shard
from pixnerd_plugin.datasets.shards import Shard, ShardIndex, write_shard_index
from pixnerd_plugin.registry import DATASETS
from tests.training import ROOT, run_tool

from .test_shards import write_tar

PIPELINE = [dict(type='LoadRGB'), dict(type='ResizeCenterCrop', size=8), dict(type='PackInputs')]


def encoded(suffix='.png', size=(8, 8), **options):
    buffer = io.BytesIO()
    Image.new('RGB', size, 'red').save(buffer, decode.Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def captions_of(root, **options):
    dataset = DATASETS.build(dict(type='CaptionFolder', data_root=str(root), pipeline=PIPELINE, **options))
    found = [dataset.get_data_info(index) for index in range(len(dataset))]
    return {os.path.relpath(info['img_path'], root): info['captions'] for info in found}


def write(root, **contents):
    for name, content in contents.items():
        path = root / name.replace('__', '.')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(content, pairs, kind='image'):
    return [content[p[f'{kind}_offset'] : p[f'{kind}_offset'] + p[f'{kind}_size']] for p in pairs]


def test_names_with_dots_pair_in_shards(tmp_path):
    members = [
        ('my.photo.v1.jpg', b'A'),
        ('my.photo.v1.txt', b'first'),
        ('my.photo.v2.jpg', b'B'),
        ('my.photo.v2.json', b'{"caption": "second"}'),
        ('0001.jpg', b'C'),
        ('0001.txt', b'third'),
    ]
    path = write_tar(tmp_path / 'a.tar', members)
    pairs, problems = scan_shard(str(path))
    assert problems == []
    assert names(path.read_bytes(), pairs) == [b'A', b'B', b'C']
    assert names(path.read_bytes(), pairs, 'caption') == [b'first', b'{"caption": "second"}', b'third']


def test_further_fields_of_a_webdataset_are_no_pictures_and_are_counted(tmp_path):
    members = [('1.seg.png', b'S'), ('1.jpg', b'A'), ('1.txt', b'one'), ('2.seg.png', b'S'), ('2.jpg', b'B')]
    members += [('2.txt', b'two'), ('2.npy', b'N')]
    path = write_tar(tmp_path / 'a.tar', members)
    pairs, problems = scan_shard(str(path))
    assert names(path.read_bytes(), pairs) == [b'A', b'B']
    assert sorted(map(str, problems)) == [
        'not used: .npy',
        'not used: .seg.png, a further field of a picture (2 of them)',
    ]


def test_capitals_do_not_matter(tmp_path):
    write(tmp_path, e__png=encoded(), E__TXT=b'upper', f__PNG=encoded(), f__Caption=b'mixed')
    # The caption of another picture is not taken for that of one whose name differs in capitals.
    write(tmp_path, g__png=encoded(), g__txt=b'small', G__png=encoded())
    assert captions_of(tmp_path) == {'G.png': [''], 'e.png': ['upper'], 'f.PNG': ['mixed'], 'g.png': ['small']}
    path = write_tar(tmp_path / 'a.tar', [('e.png', b'1'), ('E.TXT', b'upper')])
    pairs, problems = scan_shard(str(path))
    assert (names(path.read_bytes(), pairs, 'caption'), problems) == ([b'upper'], [])


def test_caption_files_are_read_after_the_other_kinds(tmp_path):
    write(tmp_path, a__png=encoded(), a__caption=b'one\ntwo', b__png=encoded(), b__caption=b'no', b__txt=b'yes')
    assert captions_of(tmp_path) == {'a.png': ['one', 'two'], 'b.png': ['yes']}
    path = write_tar(tmp_path / 'a.tar', [('a.png', encoded()), ('a.caption', b'one')])
    pairs, _ = scan_shard(str(path))
    assert pairs['caption_kind'].tolist() == [3]
    write_shard_index(str(tmp_path / 'index'), [(Shard('a.tar', path.stat().st_size, 1), pairs)])
    dataset = DATASETS.build(dict(type='ShardDataset', data_root=str(tmp_path), index=str(tmp_path / 'index')))
    assert dataset.captions(0) == ['one']


def test_a_caption_of_two_paragraphs_can_stay_one(tmp_path):
    text = 'A cat.\n\nIt sleeps\non a mat.\n'
    write(tmp_path, a__png=encoded(), a__txt=text.encode())
    assert captions_of(tmp_path) == {'a.png': ['A cat.', 'It sleeps', 'on a mat.']}
    assert captions_of(tmp_path, one_caption_per_file=True) == {'a.png': ['A cat. It sleeps on a mat.']}
    several = parse_captions(b'{"caption": ["a", "b"]}', '.json', one_per_file=True)
    assert several == ['a', 'b']


def test_links_to_folders_are_followed_once_and_in_no_circle(tmp_path, log):
    write(tmp_path / 'root' / 'cats', a__png=encoded(), a__txt=b'a cat')
    write(tmp_path / 'far' / 'deep', b__png=encoded(), b__txt=b'far away')
    (tmp_path / 'root/linked').symlink_to(tmp_path / 'far')
    (tmp_path / 'far/back').symlink_to(tmp_path / 'root')
    (tmp_path / 'root/again').symlink_to(tmp_path / 'root/cats')
    (tmp_path / 'root/self').symlink_to('self')
    root = tmp_path / 'root'
    assert captions_of(root) == {'cats/a.png': ['a cat'], 'linked/deep/b.png': ['far away']}
    (line,) = [record.getMessage() for record in log.records if 'not used' in record.getMessage()]
    assert 'link to a folder listed already: 2' in line
    assert 'broken link or no file: 1' in line
    # A link out of the folder into a folder that is reached first through a parent lists nothing twice.
    (tmp_path / 'root/above').symlink_to(tmp_path)
    found = [os.path.realpath(path) for path in list_files(str(root))]
    assert len(found) == len(set(found)) == 4


def test_class_folders_may_be_links_and_hold_links(tmp_path, log):
    write(tmp_path / 'far' / 'more', b__png=encoded())
    write(tmp_path / 'root' / 'cats', a__png=encoded(), film__mp4=b'', notes=b'')
    write(tmp_path / 'root', stray__png=encoded())
    (tmp_path / 'root/dogs').symlink_to(tmp_path / 'far')
    (tmp_path / 'root/cats/old').symlink_to(tmp_path / 'far/more')
    dataset = DATASETS.build(dict(type='ImageFolder', data_root=str(tmp_path / 'root'), pipeline=PIPELINE))
    assert [dataset.get_data_info(i)['label'] for i in range(3)] == [0, 0, 1]
    (line,) = [record.getMessage() for record in log.records if 'not used' in record.getMessage()]
    for skipped in ('.mp4: 1', 'no suffix: 1', 'file outside the class folders: 1', 'stray.png'):
        assert skipped in line


def test_everything_skipped_is_counted_and_named_once(tmp_path, log):
    write(tmp_path, a__png=encoded(), a__txt=b'a', a__json=b'{}', alone__txt=b'no picture', x__mp4=b'', y__mp4=b'')
    write(tmp_path, z__xyz=b'')
    dataset = DATASETS.build(dict(type='CaptionFolder', data_root=str(tmp_path), pipeline=PIPELINE))
    assert len(dataset) == 1
    (line,) = [record.getMessage() for record in log.records if 'not used' in record.getMessage()]
    assert '.mp4: 2 (' in line
    assert 'x.mp4, …' in line
    assert '.xyz: 1' in line
    assert 'caption without a picture, or beside another caption: 2' in line


@pytest.fixture
def formats():
    """The formats are looked for anew, before and after."""
    caches = (decode._formats, decode.readable_suffixes)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_jfif_is_jpeg(tmp_path):
    write(tmp_path, a__jfif=encoded('.jpg'), a__txt=b'old', b__JFIF=encoded('.jpg'), b__txt=b'older')
    assert captions_of(tmp_path) == {'a.jfif': ['old'], 'b.JFIF': ['older']}


@pytest.mark.skipif('AVIF' not in decode._formats(), reason='this Pillow cannot write AVIF')
def test_avif_is_read_and_damage_to_it_is_damage(tmp_path):
    content = encoded('.avif', size=(64, 48))
    write(tmp_path, a__avif=content, a__txt=b'new')
    assert captions_of(tmp_path) == {'a.avif': ['new']}
    assert decode.decode_image(content).size == (64, 48)
    assert decode.picture_shape(content) == (48, 64)
    rng = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        with contextlib.suppress(decode.DamagedImage):
            decode.decode_image(bytes(broken))


def test_heic_is_read_where_a_decoder_is_installed_and_else_named_with_it(tmp_path, log, monkeypatch, formats):
    write(tmp_path, a__png=encoded(), a__txt=b'a', b__heic=b'heic of a phone', b__txt=b'b')
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    assert captions_of(tmp_path) == {'a.png': ['a']}
    (line,) = [record.getMessage() for record in log.records if 'not used' in record.getMessage()]
    assert '.heic (needs pip install pillow-heif): 1' in line

    def register():
        Image.register_open('HEIF', lambda file, name: Image.new('RGB', (4, 4)), lambda start: start[:4] == b'heic')

    decode._formats.cache_clear()
    decode.readable_suffixes.cache_clear()
    monkeypatch.setattr(Image, 'OPEN', dict(Image.OPEN))
    monkeypatch.setattr(Image, 'ID', list(Image.ID))
    monkeypatch.setitem(sys.modules, 'pillow_heif', types.SimpleNamespace(register_heif_opener=register))
    assert captions_of(tmp_path) == {'a.png': ['a'], 'b.heic': ['b']}
    assert decode.decode_image(tmp_path / 'b.heic').size == (4, 4)


def test_a_few_damaged_pictures_end_no_small_run(tmp_path):
    for index in range(90):
        write(tmp_path / 'a', **{f'{index:02d}__png': encoded()[: 40 if index < 3 else None]})
    folder = dict(type='ImageFolder', data_root=str(tmp_path), pipeline=PIPELINE)
    dataset = DATASETS.build(folder)
    assert len([dataset[index] for index in range(90)]) == 90
    assert dataset.num_damaged == 3
    with pytest.raises(ValueError, match='tolerated_damaged=-1 must be at least 0'):
        DATASETS.build(dict(folder, tolerated_damaged=-1))
    strict = DATASETS.build(dict(folder, tolerated_damaged=2))
    with pytest.raises(RuntimeError, match='3 damaged pictures among 90'):
        list(DataLoader(strict))


def test_the_index_keeps_shapes_and_leaves_out_what_does_not_decode(tmp_path):
    members = [('1.png', encoded(size=(30, 20))), ('1.txt', b'one'), ('2.png', encoded()[:-30]), ('2.txt', b'two')]
    write_tar(tmp_path / 'shards/a.tar', members)

    def build(*options):
        command = ('tools/build_shard_index.py', tmp_path / 'shards', tmp_path / 'index', '--workers', '1', *options)
        done = run_tool(sys.executable, *command)
        assert done.returncode == 0, done.stderr
        return done

    assert '2 pairs; no problems' in build().stdout
    assert ShardIndex(str(tmp_path / 'index')).shapes().tolist() == [[20, 30], [8, 8]]
    done = build('--decode')
    assert '1 pairs; damaged picture: 1' in done.stdout
    assert 'a.tar: damaged picture: 2.png: ' in done.stderr
    folder = dict(type='ShardDataset', data_root=str(tmp_path / 'shards'), index=str(tmp_path / 'index'))
    dataset = DATASETS.build(folder)
    assert dataset.all_shapes().tolist() == [[20, 30]]
    assert dataset.shape_of(0) == (20, 30)


def test_an_index_without_shapes_reads_headers_and_a_flipped_bit_of_shapes_is_refused(tmp_path):
    late = encoded('.jpg', size=(30, 20), exif=b'Exif\0\0' + bytes(60000))
    path = write_tar(tmp_path / 'a.tar', [('1.jpg', late), ('2.png', b'no picture'), ('3.png', encoded())])
    pairs, _ = scan_shard(str(path))
    shard = Shard('a.tar', path.stat().st_size, 3)
    folder = dict(type='ShardDataset', data_root=str(tmp_path), index=str(tmp_path / 'index'))
    expected = [[20, 30], [1, 1], [8, 8]]
    index = tmp_path / 'index'
    write_shard_index(str(index), [(shard, pairs)])
    with_shapes = DATASETS.build(folder)
    assert with_shapes.all_shapes().tolist() == expected
    content = bytearray(index.read_bytes())
    content[3 * 32 + 1] ^= 4
    index.write_bytes(content)
    with pytest.raises(ValueError, match='the shapes do not fit their checksum'):
        DATASETS.build(folder).all_shapes()
    write_shard_index(str(index), [(shard, pairs[list(scan_names())].copy())])
    without = DATASETS.build(folder)
    assert without.index.shapes() is None
    assert without.all_shapes().tolist() == expected
    assert without.fingerprint == with_shapes.fingerprint


def scan_names():
    from pixnerd_plugin.datasets.shards import PAIR

    return PAIR.names


@pytest.mark.parametrize('tool', ['build_shard_index', 'benchmark_data', 'check_data'])
def test_help_needs_nothing_that_is_installed(tool):
    program = (
        'import runpy, sys\n'
        "for name in ('numpy', 'torch', 'PIL', 'tqdm', 'mmengine'):\n"
        '    sys.modules[name] = None\n'
        f"sys.argv = ['{tool}.py', '--help']\n"
        f'sys.path.insert(0, {str(ROOT / "tools")!r})\n'
        f"runpy.run_path({str(ROOT / f'tools/{tool}.py')!r}, run_name='__main__')\n"
    )
    done = run_tool(sys.executable, '-S', '-c', program, fresh=True)
    assert done.returncode == 0, done.stderr
    assert 'usage:' in done.stdout

"""Shards and indexes that strangers made: nothing outside the data root is read, in bounded time and memory."""

import hashlib
import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pixnerd_plugin.datasets import CaptionFolder, ImageFolder, ShardDataset
from pixnerd_plugin.datasets.captions import parse_captions
from pixnerd_plugin.datasets.decode import decode_image
from pixnerd_plugin.datasets.shard_scan import scan_shard
from pixnerd_plugin.datasets.shards import BLOCK, PAIR, Shard, ShardIndex, write_shard_index
from pixnerd_plugin.datasets.tar_file import read_members
from tests.limits import limited, refusal


def png(seed=0):
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, 'PNG')
    return encoded.getvalue()


def write_tar(path, members, tar_format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, 'w', format=tar_format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def root(tmp_path):
    """Two shards of three pairs, and their index."""
    folder = tmp_path / 'shards'
    folder.mkdir()
    for shard in range(2):
        members = [
            (f'{i}{suffix}', png(i) if suffix == '.png' else b'text') for i in range(3) for suffix in ('.png', '.txt')
        ]
        write_tar(folder / f'{shard}.tar', members)
    scanned = [(path, scan_shard(str(path))[0]) for path in sorted(folder.glob('*.tar'))]
    write_shard_index(
        tmp_path / 'index', [(Shard(p.name, p.stat().st_size, len(pairs)), pairs) for p, pairs in scanned]
    )
    return folder


def parts(index):
    """The records and the footer of an index, without its shapes."""
    content = index.read_bytes()
    length = int.from_bytes(content[-16:-8], 'little')
    footer = json.loads(content[-16 - length : -16])
    footer.pop('shapes_crc32', None)
    count = sum(num_pairs for _, _, num_pairs in footer['shards'])
    return np.frombuffer(content, PAIR, count).copy(), footer


def write_index(path, records, footer, checksums='true'):
    """An index; ``checksums`` are made to fit, are those that were, or are those of an index of version 0.1."""
    footer = dict(footer)
    encoded = records.tobytes()
    if checksums != 'old':
        footer['records_sha256'] = hashlib.sha256(encoded).hexdigest()
    if checksums == 'true':
        blocks = [encoded[i : i + BLOCK * 32] for i in range(0, len(encoded), BLOCK * 32)]
        footer['records_crc32'] = b''.join(struct.pack('<L', zlib.crc32(block)) for block in blocks).hex()
    elif checksums == '0.1':
        footer.pop('records_crc32')
    text = json.dumps(footer).encode()
    path.write_bytes(encoded + text + len(text).to_bytes(8, 'little') + b'PNSHARD1')
    return path


def dataset(root, index=None):
    return ShardDataset(str(root), str(index or root.parent / 'index'))


@pytest.mark.parametrize('outside', ['../secret.png', '{root}/../secret.png', 'a/../../secret.png', '..\\secret.png'])
def test_an_index_names_nothing_outside_the_data_root(root, outside):
    secret = root.parent / 'secret.png'
    secret.write_bytes(png(9))
    (root / '..\\secret.png').write_bytes(png(9))
    records, footer = parts(root.parent / 'index')
    footer['shards'] = [[outside.format(root=root), secret.stat().st_size, 1]]
    records = records[:1]
    records['image_offset'], records['image_size'] = 0, secret.stat().st_size
    records['caption_kind'] = records['caption_size'] = 0
    write_index(root.parent / 'index', records, footer)
    assert 'must be a path below the data root' in refusal(lambda: dataset(root)[0])


def test_links_to_shards_are_the_users_own(root, tmp_path):
    (tmp_path / 'link').symlink_to(root)
    assert dataset(tmp_path / 'link', tmp_path / 'index')[0]['text'] == 'text'
    (tmp_path / 'far').mkdir()
    (root / '1.tar').rename(tmp_path / 'far/1.tar')
    (root / '1.tar').symlink_to(tmp_path / 'far/1.tar')
    assert dataset(root)[5]['text'] == 'text'


@pytest.mark.parametrize('checksums', ['old', '0.1'])
def test_records_that_do_not_fit_their_checksum_are_refused(root, checksums):
    index = root.parent / 'index'
    records, footer = parts(index)
    if checksums == '0.1':
        footer['records_sha256'] = '0' * 64
    records['image_offset'][4] += 512
    write_index(index, records, footer, 'old')
    if checksums == '0.1':
        footer.pop('records_crc32')
        write_index(index, records, footer, 'old')
    assert 'do not fit their checksum' in refusal(lambda: dataset(root)[4])


def test_an_index_of_version_0_1_still_works_and_is_the_same_data(root):
    index = root.parent / 'index'
    records, footer = parts(index)
    before = dataset(root).fingerprint
    write_index(index, records, footer, '0.1')
    assert dataset(root).fingerprint == before
    assert [dataset(root)[i]['text'] for i in range(6)] == ['text'] * 6


def test_one_checksum_a_block(tmp_path):
    (tmp_path / '0.tar').write_bytes(bytes(1000))
    pairs = np.zeros(2 * BLOCK + 5, PAIR)
    pairs['image_size'], pairs['image_offset'] = 10, np.arange(len(pairs)) % 900
    halves = [pairs[:100].copy(), pairs[100:].copy()]
    write_shard_index(tmp_path / 'index', [(Shard('0.tar', 1000, len(half)), half) for half in halves])
    index = ShardIndex(str(tmp_path / 'index'))
    assert [index[i].image_offset for i in range(len(index))] == pairs['image_offset'].tolist()
    assert index[100].shard == 1
    content = bytearray((tmp_path / 'index').read_bytes())
    content[BLOCK * 32 + 7] ^= 1
    (tmp_path / 'index').write_bytes(content)
    index = ShardIndex(str(tmp_path / 'index'))
    assert index[BLOCK - 1]
    assert index[2 * BLOCK]
    with pytest.raises(ValueError, match=rf'pairs {BLOCK} to {2 * BLOCK - 1} do not fit their checksum'):
        index[BLOCK]


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('shard', 77),
        ('shard', 1),
        ('image_offset', 2**63),
        ('image_offset', 2**64 - 1),
        ('image_offset', 10**5),
        ('image_size', 0),
        ('image_size', 2**32 - 1),
        ('caption_offset', 2**63),
        ('caption_size', 2**31),
        ('caption_kind', 4),
    ],
)
def test_records_lie_in_their_shard(root, field, value):
    records, footer = parts(root.parent / 'index')
    records[field][2] = value
    write_index(root.parent / 'index', records, footer)
    message = refusal(lambda: dataset(root)[2])
    assert 'pair 2 does not lie in its shard; build it with tools/build_shard_index.py again' in message


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda f: f['shards'][0].__setitem__(2, '1'), "shard 0: num_pairs='1' must be an integer"),
        (lambda f: f['shards'][0].__setitem__(2, -3), 'shard 0: num_pairs=-3'),
        (lambda f: f['shards'][1].__setitem__(1, 2**70), 'shard 1: size='),
        (lambda f: f['shards'][1].__setitem__(0, 5), 'shard 1: name=5'),
        (lambda f: f['shards'].append([]), 'shards=a list'),
        (lambda f: f.update(shards={}), 'shards=a dict'),
        (lambda f: f.update(shards=[]), 'shards=a list'),
        (lambda f: f.pop('shards'), 'its footer has no shards'),
        (lambda f: f.pop('records_sha256'), 'its footer has no records_sha256'),
        (lambda f: f.update(records_crc32='xy'), 'records_crc32: '),
        (lambda f: f.update(records_crc32=''), '0 checksums for 6 pairs'),
        (lambda f: f.update(records_crc32=7), 'records_crc32=7'),
        (lambda f: f.update(more=1), "an entry 'more'"),
    ],
)
def test_footers_are_checked(root, change, message):
    records, footer = parts(root.parent / 'index')
    change(footer)
    write_index(root.parent / 'index', records, footer, 'old')
    assert message in refusal(lambda: dataset(root))


def test_footers_that_claim_or_take_too_much(root):
    index = root.parent / 'index'
    for footer, length, message in (
        (b'', 2**63, 'its end is not that of one'),
        (b'[' * 600 + b']' * 600, None, 'its footer is a list'),
        (b'[' * 10**5 + b']' * 10**5, None, 'nested too deeply'),
        (b'[' + b'[],' * 10**7 + b'[]]', None, 'its footer claims'),
        (b'\xff', None, 'is not UTF-8'),
    ):
        size = len(footer) if length is None else length
        index.write_bytes(footer + size.to_bytes(8, 'little') + b'PNSHARD1')
        assert message in refusal(lambda: ShardIndex(str(index)))
    index.write_bytes(b'')
    os.truncate(index, 2**38)
    refusal(lambda: ShardIndex(str(index)))
    index.unlink()
    os.mkfifo(index)
    assert 'not a plain file' in refusal(lambda: ShardIndex(str(index)))


def test_records_without_end_are_not_read(root):
    index = root.parent / 'index'
    footer = json.dumps(dict(shards=[['0.tar', 1, 2**30]] * 8, records_sha256='0' * 64)).encode()
    with open(index, 'wb') as file:
        file.truncate(2**38)
        file.seek(2**38)
        file.write(footer + len(footer).to_bytes(8, 'little') + b'PNSHARD1')
    assert 'its number of pairs=8589934592 must be' in refusal(lambda: ShardIndex(str(index)))


def test_an_index_that_is_cut_short_while_it_is_held_does_no_harm(tmp_path):
    pairs = np.ones(1000, PAIR)
    (tmp_path / '0.tar').write_bytes(bytes(10))
    write_shard_index(tmp_path / 'index', [(Shard('0.tar', 10, len(pairs)), pairs)])

    def hold():
        held = dataset(tmp_path, tmp_path / 'index')
        os.truncate(tmp_path / 'index', 100)
        held.describe(999)

    outcome = limited(hold)
    assert not outcome.signal, 'it died of SIGBUS'
    assert outcome.error == 'ValueError'
    assert 'cannot be read any more' in outcome.message


def header(name=b'a.png', size=b'00000001000\0', kind=b'0', magic=b'ustar\x0000'):
    """A tar header with a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b' ' * 8
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[148:156] = f'{sum(block):06o}\0 '.encode()
    return bytes(block)


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('a size below zero', header(size=b'\xff' * 12)),
        ('minus one', header(size=b'-1\0')),
        ('an extended header of 8 GiB', header(kind=b'x', size=b'77777777777\0')),
        ('a long name of 8 GiB', header(kind=b'L', size=b'77777777777\0')),
        ('a size of 90 bits', header(size=b'\x80' + b'\xff' * 11)),
        ('a pax size below zero', header(kind=b'x', size=b'00000000013\0') + b'11 size=-5\n' + bytes(501) + header()),
        ('a picture of 8 GiB', header(size=b'77777777777\0')),
    ],
)
def test_sizes_in_a_tar_are_not_believed(tmp_path, name, content):
    path = tmp_path / 'a.tar'
    path.write_bytes(content)
    os.truncate(path, 2**38)

    def scan():
        pairs, problems = scan_shard(str(path))
        return len(pairs), [problem.kind for problem in problems]

    outcome = limited(scan)
    assert outcome.value is not None, outcome
    pairs, problems = outcome.value
    # The header behind a nonsensical extended one is as good as any.
    assert pairs == (1 if 'pax' in name else 0)
    assert 'broken member' in problems


def test_names_in_a_tar_are_printed_on_one_line(tmp_path):
    path = write_tar(tmp_path / 'a.tar', [('a\n\x1b[2J.png', b'x'), ('/b\r.png', b'x')], tarfile.GNU_FORMAT)
    _, problems = scan_shard(str(path))
    assert len(problems) == 2
    assert all(problem.where.isprintable() for problem in problems)


def test_our_reader_of_tars_agrees_with_pythons(tmp_path):
    names = ['a.png', 'b/c.txt', 'd' * 96 + '.png', 'e/' * 70 + 'f.png', 'g' * 300 + '.png', 'ü/ß.png']
    for number, tar_format in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        wanted = [name for name in names if number or len(name) < 250]
        path = write_tar(tmp_path / f'{number}.tar', [(name, b'x' * 700) for name in wanted], tar_format)
        with tarfile.open(path, 'a', format=tar_format) as tar:
            folder, link = tarfile.TarInfo('folder'), tarfile.TarInfo('link.png')
            folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, 'a.png'
            tar.addfile(folder)
            tar.addfile(link)
        with tarfile.open(path) as tar:
            expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
        found = list(read_members(str(path)))
        assert [(m.name, m.offset, m.size) for m in found if not m.problem] == expected
        assert [m.problem for m in found if m.problem] == ['a folder', 'a link, or a name outside the shard']


@pytest.mark.parametrize(
    'encoded',
    [
        b'{"caption": "\\ud800"}',
        b'{"caption": ' + b'[' * 600 + b']' * 600 + b'}',
        b'[' * 10**5,
        b'{"caption": 1e999}',
        b' ' * 2**21 + b'{"caption": "x"}',
        b'null',
    ],
)
def test_captions_that_are_none_are_refused(encoded):
    assert refusal(lambda: parse_captions(encoded, '.json'))


def test_caption_files_without_end_are_not_read(tmp_path):
    (tmp_path / 'a.png').write_bytes(png())
    (tmp_path / 'a.txt').write_text('x')
    os.truncate(tmp_path / 'a.txt', 2**38)
    folder = CaptionFolder(str(tmp_path))
    outcome = limited(lambda: folder.captions(0))
    assert outcome.value == [''], outcome


def test_a_picture_that_became_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/0.png').write_bytes(png())
    folder = ImageFolder(str(tmp_path), pipeline=[dict(type='LoadRGB')], max_damaged=1.0)
    (tmp_path / 'a/0.png').unlink()
    os.mkfifo(tmp_path / 'a/0.png')
    outcome = limited(lambda: folder[0])
    assert 'no file, but a folder, pipe or device' in outcome.message


def test_a_jpeg_of_thousands_of_scans_is_not_decoded():
    encoded = io.BytesIO()
    Image.new('L', (9000, 9000)).save(encoded, 'JPEG', progressive=True)
    content = encoded.getvalue()
    scan = content[content.rindex(b'\xff\xda') : -2]
    many = content[:-2] + scan * 2000 + content[-2:]
    assert len(many) < 2**20
    assert 'scans, which would take minutes' in refusal(lambda: decode_image(many))
    encoded = io.BytesIO()
    Image.new('RGB', (64, 48)).save(encoded, 'JPEG', progressive=True)
    assert decode_image(encoded.getvalue()).size == (64, 48)

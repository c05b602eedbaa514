"""Files of the evaluation that strangers made: one line each, within limits, and nothing outside is touched."""

import json
import os
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin.evaluation import text_benchmarks
from pixnerd_plugin.evaluation.classifier import METADATA_KEY, ClassifierFeatures, SmallConvNet, save_classifier
from pixnerd_plugin.evaluation.pictures import open_images
from pixnerd_plugin.evaluation.quality import open_reference
from pixnerd_plugin.evaluation.store import SampleStore
from tests.evaluation.fakes import TinyFeatures, pictures, statistics
from tests.limits import limited, refusal


def read(path):
    """Every picture of a folder or npz."""
    return sum(len(batch) for batch in open_images(path).batches(16))


def header(shape, descr='|u1', **more):
    text = repr(dict(descr=descr, fortran_order=False, shape=shape) | more).encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text


def write_zip(path, content, name='arr_0.npy', method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'does not begin as an array'),
        (header((2, 4, 4, 3)), 'header is that of'),
        (header((2**30, 4, 4, 3)) + bytes(96), 'header is that of'),
        (header((2**41, 4, 4, 3)), r'shape=a tuple must be'),
        (header((-1, 4, 4, 3)), 'shape=a tuple must be'),
        (header((True, 4, 4, 3)), 'shape=a tuple must be'),
        (header((1, 4, 4)) + bytes(16), r'is uint8 \(1, 4, 4\)'),
        (header((0, 4, 4, 3)), r'is uint8 \(0, 4, 4, 3\)'),
        (header((1, 8192, 1, 3)) + bytes(8192 * 3), 'more than 4096 pixels'),
        (header((1, 4, 4, 3), fortran_order=1) + bytes(48), 'fortran_order=1'),
        (header((1, 4, 4, 3), 'O') + bytes(48), "of 'O', and an array of numbers"),
        (header((1, 4, 4, 3), [('a', '|u1')]) + bytes(48), 'descr=a list'),
        (header((1, 4, 4, 3), '<f4') + bytes(192), 'is float32'),
        (header((1, 4, 4, 3), '<i16') + bytes(768), 'no type of numbers'),
        (header((1, 4, 4, 3), '|f1') + bytes(48), 'no type of numbers'),
        (header((1, 4, 4, 3), more=1) + bytes(48), "an entry 'more'"),
        (b'\x93NUMPY\x02\x00' + struct.pack('<L', 2**31) + bytes(100), 'claims 2147483648 bytes'),
        (b'\x93NUMPY\x09\x00' + bytes(100), 'does not begin'),
        (b'\x93NUMPY\x01\x00' + struct.pack('<H', 4000) + b'(' * 4000, 'not readable'),
        (b'\x93NUMPY\x01\x00' + struct.pack('<H', 4) + b'[1,]', 'its header is a list'),
        (b'\x93NUMPY\x01\x00' + struct.pack('<H', 12) + b'{"descr": 1}', 'descr=1 must be'),
    ],
)
def test_headers_of_an_npz_are_not_believed(tmp_path, content, message):
    found = refusal(lambda: read(write_zip(tmp_path / 'a.npz', content)))
    assert re.search(message, found), found


@pytest.mark.parametrize(('flags', 'method'), [(1, 0), (1 << 5, 0), (1 << 6, 0), (0, 99), (0, 12), (0, 14)])
def test_encrypted_and_strange_archives_are_told(tmp_path, flags, method):
    path = write_zip(tmp_path / 'a.npz', header((1, 4, 4, 3)) + bytes(48))
    content = bytearray(path.read_bytes())
    for start, mark in ((content.index(b'PK\3\4'), 6), (content.index(b'PK\1\2'), 8)):
        struct.pack_into('<2H', content, start + mark, flags, method)
    path.write_bytes(content)
    assert f'flags {flags:#x}, method {method}' in refusal(lambda: read(path))


def test_what_inflates_without_end_is_not_inflated(tmp_path):
    shape = (2**13, 512, 512, 3)
    with (
        zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open('arr_0.npy', 'w', force_zip64=True) as stream,
    ):
        stream.write(header(shape))
        for _ in range(2**8):
            stream.write(bytes(2**20))
    content = (tmp_path / 'a.npz').read_bytes()
    # It has 256 MiB, and says 6 GiB.
    start = content.rindex(b'PK\1\2')
    lie = content[: start + 24] + struct.pack('<L', 2**32 - 4) + content[start + 28 :]
    (tmp_path / 'a.npz').write_bytes(lie)
    assert 'claims to inflate to' in refusal(lambda: read(tmp_path / 'a.npz'))


def test_statistics_are_looked_at_before_they_are_read(tmp_path):
    images = pictures(60)
    for name, array, message in (
        ('sigma', np.zeros((2**12, 2**12)), 'needs mu'),
        ('mu_s', np.zeros(2**13), 'do not fit together'),
        ('mu', statistics(images)['mu'].astype(np.float16), 'is float16'),
        ('mu', np.array(['a'] * 12), 'array of numbers'),
        ('sigma_s', np.full((6, 6), np.nan), 'holds NaN'),
    ):
        np.savez_compressed(tmp_path / 'a.npz', **{**statistics(images), name: array})
        found = refusal(lambda: open_reference(str(tmp_path / 'a.npz'), (8, 8), TinyFeatures('Inception')))
        assert message in found


def test_an_npz_that_is_none_or_never_ends(tmp_path):
    path = tmp_path / 'a.npz'
    path.write_bytes(b'')
    os.truncate(path, 2**38)
    assert 'half-written or no npz' in refusal(lambda: read(path))
    with zipfile.ZipFile(path, 'w') as archive:
        for index in range(200):
            archive.writestr(f'{index}.npy', b'')
    assert 'has 200 arrays' in refusal(lambda: read(path))
    with zipfile.ZipFile(path, 'w') as archive:
        for index in range(2000):
            archive.writestr(f'{index:0100}.npy', b'')
    refusal(lambda: read(path))
    path.unlink()
    os.mkfifo(path)
    refusal(lambda: read(path))


@pytest.mark.parametrize('pixels', [(12_000, 10_000), (20_000, 10_000)])
def test_a_picture_beyond_pillows_limit_is_named(tmp_path, pixels, recwarn):
    (tmp_path / 'a').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'a/0.png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
        Image.new('1', pixels).save(tmp_path / 'a/1.png')
    message = refusal(lambda: read(tmp_path))
    assert '1.png cannot be read as a picture: DecompressionBomb' in message
    assert not list(recwarn)


def test_pictures_too_large_for_a_batch_are_named(tmp_path):
    (tmp_path / 'a').mkdir()
    Image.new('1', (9000, 8)).save(tmp_path / 'a/0.png')
    assert '0.png is 8x9000, more than 4096 pixels on a side' in refusal(lambda: read(tmp_path))


def test_pictures_of_formats_that_run_programs_are_refused(tmp_path):
    (tmp_path / 'a').mkdir()
    # Pillow would hand it to Ghostscript, whatever its name.
    (tmp_path / 'a/0.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n')
    assert 'cannot identify image file' in refusal(lambda: read(tmp_path))
    (tmp_path / 'a/0.png').write_bytes(b'')
    os.truncate(tmp_path / 'a/0.png', 2**38)
    assert 'more than 268435456' in refusal(lambda: read(tmp_path))


def test_a_picture_is_not_mapped(tmp_path):
    """Pillow maps a file whose path it is given, and dies when that is cut short."""
    (tmp_path / 'a').mkdir()
    Image.new('RGB', (2048, 2048)).save(tmp_path / 'a/0.bmp')
    load = Image.Image.convert

    def cut(self, *args, **kwargs):
        os.truncate(tmp_path / 'a/0.bmp', 100)
        return load(self, *args, **kwargs)

    def hold():
        Image.new('L', (2048, 2048)).save(tmp_path / 'a/0.bmp')
        Image.Image.convert = cut
        return read(tmp_path)

    outcome = limited(hold)
    assert not outcome.signal, 'it died of SIGBUS'
    assert outcome.value == 1 or 'cannot be read' in outcome.message


@pytest.fixture
def classifier(tmp_path):
    def write(description=None, change=lambda tensors: None, text=None):
        path = tmp_path / 'net.safetensors'
        tensors = {name: tensor.clone() for name, tensor in SmallConvNet(3).state_dict().items()}
        change(tensors)
        known = dict(class_names=['a', 'b', 'c'], size=[8, 8], accuracy=0.5)
        save_file(tensors, path, {METADATA_KEY: text or json.dumps(known if description is None else description)})
        return path

    return write


@pytest.mark.parametrize(
    ('description', 'message'),
    [
        ([], 'its description is a list'),
        (dict(class_names=['a', 'b', 'c']), 'has no size'),
        (dict(size=[8, 8]), 'has no class_names'),
        (dict(class_names=None, size=[8, 8]), 'class_names=None'),
        (dict(class_names='abc', size=[8, 8]), "class_names='abc'"),
        (dict(class_names=['a', 'b', 3], size=[8, 8]), 'class_names=a list'),
        (dict(class_names=['a', 'b'], size=[8, 8]), '2 classes need'),
        (dict(class_names=['a'] * 4, size=[8, 8]), '4 classes need'),
        (dict(class_names=['a', 'b', 'c'], size=8), 'size=8'),
        (dict(class_names=['a', 'b', 'c'], size=[8, 2**20]), 'size=a list'),
        (dict(class_names=['a', 'b', 'c'], size=[8, 8], accuracy='high'), "accuracy='high'"),
        (dict(class_names=['a', 'b', 'c'], size=[8, 8], more=1), "an entry 'more'"),
    ],
)
def test_descriptions_of_a_classifier_are_checked(classifier, description, message):
    assert message in refusal(lambda: ClassifierFeatures(classifier(description)))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('null', 'its description is None'),
        ('{', 'not JSON'),
        ('{"class_names": ["a"], "class_names": ["b"]}', "'class_names' is there twice"),
        ('{"accuracy": NaN}', 'NaN is no number'),
        ('{"accuracy": 1' + '0' * 400 + '}', 'an integer of more than 30 digits'),
        ('[' * 600 + ']' * 600, 'its description is a list'),
        ('[' * 10**5 + ']' * 10**5, 'nested too deeply'),
    ],
)
def test_texts_of_a_classifier_are_checked(classifier, text, message):
    assert message in refusal(lambda: ClassifierFeatures(classifier(text=text)))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.pop('fc.bias'), "it lacks a tensor 'fc.bias'"),
        (lambda t: t.update(more=torch.zeros(1)), "it has a tensor 'more'"),
        (lambda t: t.update({'fc.bias': torch.zeros(3).half()}), 'fc.bias is (3,) of torch.float16'),
        (lambda t: t['fc.bias'].fill_(float('nan')), 'fc.bias holds NaN'),
        (lambda t: t['layers.1.running_var'][3:].fill_(float('inf')), 'layers.1.running_var holds NaN'),
    ],
)
def test_weights_of_a_classifier_are_checked(classifier, change, message):
    path = classifier(change=change)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert message in refusal(lambda: ClassifierFeatures(path)(images))


def test_a_whole_classifier_is_read(classifier, tmp_path):
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert ClassifierFeatures(classifier())(images).logits.shape == (1, 3)
    save_classifier(SmallConvNet(2), tmp_path / 'b.safetensors', class_names=('x', 'y'), size=(8, 8), accuracy=1.0)
    assert ClassifierFeatures(tmp_path / 'b.safetensors').num_classes == 2


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"run": []}', '{"run": {}, "more": 1}', '[' * 10**5, '\0'])
def test_descriptions_of_samples_are_checked(tmp_path, text):
    (tmp_path / 'samples.json').write_text(text)
    assert 'samples.json' in refusal(lambda: SampleStore(tmp_path, dict(seed=0), 5).claim())


def test_parts_of_samples_are_checked(tmp_path):
    for name, content in (
        ('claims', header((5, 2**20, 2**19, 3))),
        ('short', header((5, 4, 4, 3)) + bytes(10)),
        ('other', header((4, 4, 4, 3)) + bytes(192)),
        ('none', b''),
    ):
        store = SampleStore(tmp_path / name, dict(seed=0), 5)
        store.claim()
        (store.parts / '00000000_00000005.npy').write_bytes(content)
        assert 'delete it and run again' in refusal(store.finish)
    store.parts.joinpath('00000000_00000005.npy').unlink()
    os.mkfifo(store.parts / '00000000_00000005.npy')
    assert 'not a plain file' in refusal(store.finish)


def test_only_what_a_run_may_have_drawn_is_removed(tmp_path):
    """Names of a file said which folders ``--overwrite`` removes."""
    precious = tmp_path / 'precious'
    precious.mkdir()
    out = tmp_path / 'out'
    out.mkdir()
    for name in ('../precious', str(precious), '..', '.', '', 'a/../../precious', 'a\\b', 'c:'):
        (out / 'run.json').write_text(json.dumps(dict(run=dict(seed=1), prompts={name: 'x'})))
        message = refusal(lambda: text_benchmarks.claim(out, dict(seed=2), [], overwrite=True))
        assert 'run.json: prompts=a dict must be a table of prompts by file name' in message
        assert precious.is_dir()


@pytest.mark.parametrize(
    'line',
    ['[]', 'null', '{}', '{"prompt": 1, "tag": "a"}', '{"prompt": "a"}', '{"prompt": "a", "tag": []}', '[' * 10**5],
)
def test_lines_of_prompts_are_checked(tmp_path, line):
    (tmp_path / 'a.jsonl').write_text('{"prompt": "a", "tag": "b"}\n' + line)
    assert 'line 2: not a JSON object with' in refusal(
        lambda: text_benchmarks.read_geneval_prompts(tmp_path / 'a.jsonl')
    )

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pixnerd_plugin.datasets import DamagedImage
from pixnerd_plugin.datasets.transforms import adm_center_crop, resize_center_crop
from pixnerd_plugin.datasets.visits import seeded
from pixnerd_plugin.registry import TRANSFORMS

GRADIENT = np.linspace(0, 255, 30 * 20 * 3).reshape(20, 30, 3).astype(np.uint8)


def encode(picture: Image.Image, kind: str = 'PNG', **kwargs) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **kwargs)
    return buffer.getvalue()


def load(encoded: bytes, **kwargs) -> np.ndarray:
    return TRANSFORMS.build(dict(type='LoadRGB', **kwargs))(dict(img_bytes=encoded))['img']


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'I', 'CMYK', 'YCbCr', 'PA'])
def test_any_mode_becomes_rgb(mode):
    base = Image.fromarray(GRADIENT)
    if mode.startswith('I'):
        picture = Image.fromarray(np.asarray(base.convert('L')).astype(np.uint16) * 257)
        picture = picture if mode == 'I;16' else picture.convert('I')
    else:
        picture = base.convert('P').convert(mode) if mode == 'PA' else base.convert(mode)
    kind = {'CMYK': 'JPEG', 'YCbCr': 'JPEG', 'PA': 'TIFF', 'I': 'TIFF'}.get(mode, 'PNG')
    img = load(encode(picture, kind))
    assert img.flags.writeable
    assert img.shape == (20, 30, 3)
    assert img.dtype == np.uint8
    if mode != '1':
        assert np.abs(img.astype(int) - GRADIENT).mean() < 16  # palette, JPEG and grey lose a little


def test_sixteen_bits_keep_their_upper_eight():
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    assert load(encode(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_transparency_is_laid_over_white(mode):
    picture = Image.new(mode, (4, 4))
    assert (load(encode(picture)) == 255).all()


def test_transparent_palette_colour_is_laid_over_white():
    assert (load(encode(Image.new('P', (4, 4)), transparency=0)) == 255).all()


def test_exif_orientation_is_honoured_unless_told_otherwise():
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    encoded = encode(Image.fromarray(GRADIENT), 'JPEG', exif=exif)
    assert load(encoded).shape == (30, 20, 3)
    assert load(encoded, exif_orientation=False).shape == (20, 30, 3)


@pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::PIL.Image.DecompressionBombWarning')
def test_damaged_bytes_raise_damaged_picture_only():
    rng = np.random.default_rng(0)
    for kind in ('PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'):
        encoded = encode(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), kind)
        for _ in range(50):
            damaged = bytearray(encoded[: rng.integers(1, len(encoded))])
            for position in rng.integers(0, len(damaged), 5):
                damaged[position] = rng.integers(256)
            with contextlib.suppress(DamagedImage):
                assert load(bytes(damaged)).shape[2] == 3


def test_missing_file_is_damaged(tmp_path):
    with pytest.raises(DamagedImage, match='FileNotFoundError'):
        TRANSFORMS.build(dict(type='LoadRGB'))(dict(img_path=str(tmp_path / 'none.png')))


@pytest.mark.parametrize(('width', 'height'), [(1, 1), (7, 90), (33, 16), (64, 64), (200, 131)])
@pytest.mark.parametrize('size', [16, 32])
def test_adm_center_crop_has_its_size_for_any_picture(width, height, size):
    assert adm_center_crop(Image.new('RGB', (width, height)), size).size == (size, size)


def test_adm_center_crop_halves_with_boxes_then_resizes_bicubically():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    halved = Image.fromarray(pixels).resize((45, 35), Image.Resampling.BOX).resize((22, 17), Image.Resampling.BOX)
    resized = np.asarray(halved.resize((21, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(adm_center_crop(Image.fromarray(pixels), 16)), resized[:, 2:18])


def test_adm_center_crop_keeps_a_picture_of_its_size():
    assert np.array_equal(adm_center_crop(Image.fromarray(GRADIENT), 20), GRADIENT[:, 5:25])


def test_resize_center_crop_covers_height_and_width():
    for height, width in [(16, 16), (10, 40), (40, 10)]:
        assert resize_center_crop(Image.fromarray(GRADIENT), height, width).size == (width, height)
    assert np.array_equal(resize_center_crop(Image.fromarray(GRADIENT), 20, 20), GRADIENT[:, 5:25])


def test_a_line_of_pixels_does_not_fill_the_memory():
    with pytest.raises(DamagedImage, match='20000x1 is too elongated'):
        adm_center_crop(Image.new('RGB', (20000, 1)), 256)


def test_stock_mmcv_transforms_stand_between_ours():
    steps = [
        dict(type='LoadRGB'),
        dict(type='RandomFlip', prob=1.0),
        dict(type='ResizeCenterCrop', size=20),
        dict(type='RandomGrayscale', prob=1.0, keep_channels=True),
        dict(type='PackInputs'),
    ]
    results = dict(img_bytes=encode(Image.fromarray(GRADIENT)), label=3, other='x')
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    assert results['inputs'].shape == (3, 20, 20)
    assert results['inputs'].dtype == torch.uint8
    assert results['data_samples'] == dict(label=3)


def test_random_crop_resize_depends_on_the_seed_alone():
    crop = TRANSFORMS.build(dict(type='RandomCropResize', size=8, min_scale=0.5))
    pictures = []
    for seed in (0, 0, 1):
        with seeded((seed,)):
            pictures.append(crop(dict(img=GRADIENT))['img'])
    assert pictures[0].shape == (8, 8, 3)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_random_caption_chooses_each_caption():
    choose = TRANSFORMS.build(dict(type='RandomCaption'))
    with seeded((0,)):
        assert {choose(dict(captions=['a', 'b', 'c']))['text'] for _ in range(50)} == {'a', 'b', 'c'}


@pytest.mark.parametrize(
    'step',
    [
        dict(type='ADMCenterCrop', size=0),
        dict(type='ResizeCenterCrop', size=(16, -1)),
        dict(type='RandomCropResize', size=8, min_scale=0),
    ],
)
def test_wrong_arguments_are_refused(step):
    with pytest.raises(ValueError, match=r'size=.* must be|min_scale=0 must be'):
        TRANSFORMS.build(step)


def test_pack_inputs_refuses_other_pictures():
    with pytest.raises(ValueError, match=r'\(4, 4\) float64'):
        TRANSFORMS.build(dict(type='PackInputs'))(dict(img=np.zeros((4, 4))))

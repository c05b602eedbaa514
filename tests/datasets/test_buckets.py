"""Pictures of several shapes: buckets of equal area, batches of one shape, and exact resuming."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pixnerd_plugin.datasets import sampler as sampler_module
from pixnerd_plugin.datasets.buckets import make_buckets, merge_rare, nearest_buckets
from pixnerd_plugin.datasets.decode import decode_image, picture_shape
from pixnerd_plugin.registry import DATA_SAMPLERS, DATASETS

PIPELINE = [dict(type='LoadRGB'), dict(type='ResizeCenterCrop', size=16), dict(type='PackInputs')]


class Shapes(list):
    """A dataset of shapes alone, in shards of five."""

    def __init__(self, shapes):
        super().__init__(shapes)
        self.shard_sizes = [5] * (len(shapes) // 5)

    def shape_of(self, index):
        return self[index]


MIXED = Shapes([(32, 64)] * 13 + [(64, 32)] * 9 + [(32, 32)] * 8)


def make(dataset, rank=0, world_size=1, batch_size=4, visits=None, order=None, **kwargs):
    original = sampler_module.get_dist_info
    sampler_module.get_dist_info = lambda: (rank, world_size)
    try:
        sampler = DATA_SAMPLERS.build(dict(type='ResumableSampler', dataset=dataset, **(order or {})))
    finally:
        sampler_module.get_dist_info = original
    sampler.skip(visits or 0)
    return DATA_SAMPLERS.build(dict(type='BucketBatchSampler', sampler=sampler, batch_size=batch_size, **kwargs))


def take(batches, count):
    return [[(int(v), v.entropy, v.shape) for v in batch] for batch in islice(batches, count)]


@pytest.mark.parametrize(('resolution', 'multiple'), [(256, 16), (512, 16), (32, 8), (24, 4), (1024, 32)])
def test_buckets_have_the_area_of_the_square_and_whole_patches(resolution, multiple):
    buckets = make_buckets(resolution, 2.0, multiple)
    assert (resolution, resolution) in buckets
    assert {(width, height) for height, width in buckets} == set(buckets)
    assert [width / height for height, width in buckets] == sorted({width / height for height, width in buckets})
    for height, width in buckets:
        assert height % multiple == width % multiple == 0
        assert max(height, width) <= 2 * min(height, width)
        assert abs(height * width / resolution**2 - 1) <= 0.2


def test_a_data_set_may_have_more_shapes_than_two_bytes_can_count():
    shapes = Shapes([(number // 300 + 1, number % 300 + 1) for number in range(70_000)])
    batches = make(shapes, batch_size=1, order=dict(shuffle=False))
    assert len(batches.buckets) == 70_000
    for index in (0, 4464, 65_535, 65_536, 69_999):
        assert batches.buckets[batches._numbers[index]] == shapes[index]


def test_more_elongated_buckets_are_a_matter_of_max_aspect():
    assert make_buckets(256, 1.0) == [(256, 256)]
    assert make_buckets(32, 2.0, 8) == [(48, 24), (40, 24), (32, 32), (24, 40), (24, 48)]
    assert make_buckets(256, 4.0)[0] == (512, 128)


def test_a_picture_goes_to_the_bucket_nearest_in_the_logarithm_of_its_aspect():
    buckets = [(32, 16), (24, 24), (16, 32)]
    shapes = np.array([(100, 10), (1414, 1001), (1415, 1000), (1000, 1415), (7, 7), (10, 100)])
    assert nearest_buckets(shapes, buckets).tolist() == [0, 1, 0, 2, 1, 2]


def test_a_bucket_with_less_than_a_batch_is_given_to_its_neighbour():
    buckets = [(32, 16), (28, 20), (24, 24), (16, 32)]
    numbers = np.array([0] + [1] * 2 + [2] * 9 + [3] * 4)
    assert merge_rare(numbers, buckets, 4).tolist() == [2] * 12 + [3] * 4
    assert merge_rare(numbers, buckets, 100).tolist() == [2] * 16


ORDERS = [dict(), dict(shuffle=False), dict(shards_per_block=2)]


@pytest.mark.parametrize('order', ORDERS)
def test_batches_have_one_shape_and_miss_no_picture(order):
    batches = take(make(MIXED, order=order), 300)
    counts = np.zeros(len(MIXED), dtype=int)
    for batch in batches:
        assert len(batch) == 4
        assert len({shape for _, _, shape in batch}) == 1
        for index, _, shape in batch:
            assert shape == MIXED[index]
            counts[index] += 1
    # 1200 visits of 30 pictures; at most 3 of each shape wait at the end.
    assert counts.sum() == 1200
    assert set(counts) <= {39, 40, 41}
    visits = [visit for batch in batches for _, (_, visit), _ in batch]
    assert len(set(visits)) == len(visits)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('world_size', [1, 3])
def test_it_resumes_exactly_after_any_batch_on_any_number_of_ranks(order, world_size):
    whole = take(make(MIXED, order=order), 90)
    for done in range(0, 60, world_size):
        parts = [
            take(make(MIXED, rank, world_size, visits=4 * done, order=order), 30 // world_size)
            for rank in range(world_size)
        ]
        assert [batch for batches in zip(*parts, strict=True) for batch in batches] == whole[done : done + 30]


def test_few_pictures_and_large_batches_resume_too():
    shapes = Shapes([(8, 16)] * 3 + [(16, 8)])
    whole = take(make(shapes, batch_size=7), 40)
    assert all(index == 3 for batch in whole for index, _, shape in batch if shape == (16, 8))
    for done in range(30):
        assert take(make(shapes, batch_size=7, visits=7 * done), 10) == whole[done : done + 10]


def test_the_order_depends_on_the_seed():
    assert take(make(MIXED, order=dict(seed=1)), 9) != take(make(MIXED, order=dict(seed=2)), 9)


def test_without_a_resolution_the_shapes_of_the_data_are_the_buckets():
    batches = make(MIXED)
    assert sorted(batches.buckets) == [(32, 32), (32, 64), (64, 32)]
    assert batches.resolution == 32
    assert len(batches) == 7


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(resolution=40), 'resolution=40 must be a multiple of the patch, multiple=16'),
        (dict(resolution=32, max_aspect=0.5), 'max_aspect=0.5 must be from 1'),
        (dict(batch_size=0), 'batch_size=0 must be at least 1'),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(MIXED, **wrong)


def test_other_samplers_and_data_without_shapes_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r'give list a method shape_of\(index\)'):
        make([1, 2, 3])
    with pytest.raises(ValueError, match='follows a ResumableSampler, not SequentialSampler'):
        DATA_SAMPLERS.build(
            dict(type='BucketBatchSampler', sampler=torch.utils.data.SequentialSampler([1]), batch_size=1)
        )


def turned(path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_the_shape_in_the_header_is_that_of_the_decoded_picture(tmp_path, suffix, orientation):
    path = turned(tmp_path / f'a{suffix}', Image.new('RGB', (30, 20)), orientation)
    picture = decode_image(path, exif_orientation=True)
    assert picture_shape(path) == (picture.height, picture.width)


def test_the_shape_is_read_without_the_pixels(tmp_path, picture):
    path = picture(tmp_path / 'a.png', size=(40, 20))
    path.write_bytes(path.read_bytes()[:60])
    assert picture_shape(path) == (20, 40)


def write_captions(root, picture):
    for i in range(24):
        picture(root / f'{i:02d}.png', seed=i, size=[(48, 24), (24, 48), (30, 30)][i % 3])
        (root / f'{i:02d}.txt').write_text(f'picture {i}')
    (root / '03.png').write_bytes((root / '03.png').read_bytes()[:60])  # only its header is whole


def test_a_folder_gives_batches_of_each_shape_and_replaces_damaged_pictures_in_shape(tmp_path, picture):
    write_captions(tmp_path, picture)
    root = str(tmp_path)
    dataset = DATASETS.build(dict(type='CaptionFolder', data_root=root, pipeline=PIPELINE, max_damaged=0.1))
    assert dataset.all_shapes().tolist() == [[24, 48], [48, 24], [30, 30]] * 8
    loader = DataLoader(dataset, batch_sampler=make(dataset, resolution=32, multiple=8))
    shapes = {tuple(batch['inputs'].shape) for batch in islice(loader, 30)}
    assert shapes == {(4, 3, 24, 48), (4, 3, 48, 24), (4, 3, 32, 32)}
    assert dataset.num_damaged == 1


def test_a_pipeline_that_does_not_size_pictures_is_refused(tmp_path, picture):
    write_captions(tmp_path, picture)
    pipeline = [dict(type='LoadRGB'), dict(type='PackInputs')]
    dataset = DATASETS.build(dict(type='CaptionFolder', data_root=str(tmp_path), pipeline=pipeline))
    loader = DataLoader(dataset, batch_sampler=make(dataset, resolution=32, multiple=8))
    with pytest.raises(ValueError, match=r'came to a batch of .*the pipeline needs a transform that sizes it'):
        list(islice(loader, 10))


def test_every_sizing_transform_takes_the_shape_of_the_batch(tmp_path, picture):
    write_captions(tmp_path, picture)
    for transform in ('ResizeCenterCrop', 'ADMCenterCrop', 'RandomCropResize'):
        pipeline = [dict(type='LoadRGB'), dict(type=transform, size=99), dict(type='PackInputs')]
        dataset = DATASETS.build(dict(type='CaptionFolder', data_root=str(tmp_path), pipeline=pipeline))
        batches = make(dataset, resolution=16, multiple=4)
        for batch in islice(batches, 6):
            sample = dataset[batch[0]]
            assert tuple(sample['inputs'].shape[1:]) == batch[0].shape

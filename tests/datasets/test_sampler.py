from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pixnerd_plugin.datasets import sampler as sampler_module
from pixnerd_plugin.registry import DATA_SAMPLERS, DATASETS


class Shards(list):
    def __init__(self, sizes):
        super().__init__(range(sum(sizes)))
        self.shard_sizes = sizes


def make(dataset, rank=0, world_size=1, **kwargs):
    original = sampler_module.get_dist_info
    sampler_module.get_dist_info = lambda: (rank, world_size)
    try:
        return DATA_SAMPLERS.build(dict(type='ResumableSampler', dataset=dataset, **kwargs))
    finally:
        sampler_module.get_dist_info = original


def take(sampler, count):
    return [(int(visit), visit.entropy) for visit in islice(sampler, count)]


ORDERS = [dict(), dict(shuffle=False), dict(shards_per_block=2), dict(shards_per_block=1), dict(shards_per_block=9)]


@pytest.mark.parametrize('order', ORDERS)
def test_each_epoch_visits_everything_once(order):
    indices = [index for index, _ in take(make(Shards([4, 0, 7, 3, 5]), **order), 57)]
    assert sorted(indices[:19]) == sorted(indices[19:38]) == sorted(indices[38:]) == list(range(19))
    assert (indices[:19] == indices[19:38]) == (order.get('shuffle') is False)


@pytest.mark.parametrize('order', ORDERS)
def test_it_resumes_anywhere(order):
    dataset = Shards([4, 0, 7, 3, 5])
    whole = take(make(dataset, **order), 60)
    for start in range(41):
        resumed = make(dataset, **order)
        resumed.skip(start)
        assert take(resumed, 60 - start) == whole[start:]


def test_ranks_share_one_sequence_whatever_their_number():
    dataset = Shards([10, 10])
    whole = take(make(dataset), 60)
    for world_size in (2, 3):
        parts = [take(make(dataset, rank, world_size), 60 // world_size) for rank in range(world_size)]
        assert [visit for visits in zip(*parts, strict=True) for visit in visits] == whole


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    dataset = list(range(50))
    np.random.seed(1), torch.manual_seed(1)
    first = take(make(dataset, seed=3), 50)
    np.random.seed(2), torch.manual_seed(2)
    assert take(make(dataset, seed=3), 50) == first
    assert take(make(dataset, seed=4), 50) != first
    assert take(make(dataset, seed=None), 50) == take(make(dataset, seed=0), 50)


def test_blocks_read_few_shards_at_a_time():
    sizes = [5] * 8
    indices = [index for index, _ in take(make(Shards(sizes), shards_per_block=2), 40)]
    blocks = [indices[i : i + 10] for i in range(0, 40, 10)]
    assert all(len({index // 5 for index in block}) == 2 for block in blocks)
    assert any(block != sorted(block) for block in blocks)
    assert indices != sorted(indices)


@pytest.mark.parametrize(
    ('dataset', 'wrong', 'message'),
    [
        ([], dict(), 'the dataset is empty'),
        ([1], dict(seed=-1), 'seed=-1 must be at least 0'),
        ([1], dict(shards_per_block=1), 'list has no shard_sizes'),
        (Shards([1]), dict(shards_per_block=0), 'shards_per_block=0 must be at least 1, or None'),
    ],
)
def test_wrong_arguments_are_refused(dataset, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(dataset, **wrong)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_loader_gives_the_same_batches_whatever_the_workers(class_folder, workers):
    pipeline = [
        dict(type='LoadRGB'),
        dict(type='RandomCropResize', size=8, min_scale=0.5),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ]
    dataset = DATASETS.build(dict(type='ImageFolder', data_root=str(class_folder), pipeline=pipeline))

    def batches(start, count, num_workers):
        sampler = make(dataset)
        sampler.skip(start * 5)
        loader = DataLoader(dataset, batch_size=5, sampler=sampler, num_workers=num_workers)
        return list(islice(loader, count))

    uninterrupted = batches(0, 8, 0)
    for resumed, expected in zip(batches(3, 5, workers), uninterrupted[3:], strict=True):
        assert torch.equal(resumed['inputs'], expected['inputs'])
        assert torch.equal(resumed['data_samples']['sample_idx'], expected['data_samples']['sample_idx'])


def test_loading_leaves_the_model_its_random_stream(class_folder):
    pipeline = [dict(type='LoadRGB'), dict(type='RandomCropResize', size=8), dict(type='PackInputs')]
    dataset = DATASETS.build(dict(type='ImageFolder', data_root=str(class_folder), pipeline=pipeline))
    torch.manual_seed(0), np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    dataset[next(iter(make(dataset)))]
    assert (torch.rand(1), np.random.rand()) == expected

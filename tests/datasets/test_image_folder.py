import gc
import json
import logging
import re
import warnings

import pytest
from torch.utils.data import DataLoader

from pixnerd_plugin.datasets import TooManyDamaged
from pixnerd_plugin.datasets.visits import Visit
from pixnerd_plugin.registry import DATASETS

PIPELINE = [dict(type='LoadRGB'), dict(type='ADMCenterCrop', size=16), dict(type='PackInputs')]


def image_folder(root, **kwargs):
    return DATASETS.build(dict(type='ImageFolder', data_root=str(root), pipeline=PIPELINE, **kwargs))


def caption_folder(root, **kwargs):
    return DATASETS.build(dict(type='CaptionFolder', data_root=str(root), pipeline=PIPELINE, **kwargs))


def test_labels_are_the_sorted_class_folders(class_folder):
    (class_folder / '.hidden').mkdir()
    (class_folder / 'class0' / '.DS_Store').write_bytes(b'')
    (class_folder / 'class0' / 'notes.md').write_text('no picture')
    dataset = image_folder(class_folder)
    assert len(dataset) == 12
    assert dataset.metainfo['classes'] == ('class0', 'class1', 'class2')
    assert [dataset[i]['data_samples']['label'] for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset[0]['inputs'].shape == (3, 16, 16)


def test_class_names_can_be_given_but_must_fit(class_folder):
    assert image_folder(class_folder, metainfo=dict(classes=['a', 'b', 'c'])).metainfo['classes'] == ['a', 'b', 'c']
    with pytest.raises(ValueError, match=r'names 2 classes, but .* has 3 folders'):
        image_folder(class_folder, metainfo=dict(classes=['a', 'b']))


def test_fingerprint_follows_the_data_not_its_place(class_folder, tmp_path, picture):
    before = image_folder(class_folder).fingerprint
    moved = class_folder.rename(tmp_path / 'moved')
    assert image_folder(moved).fingerprint == before
    picture(moved / 'class1' / 'more.png')
    assert image_folder(moved).fingerprint != before


@pytest.mark.parametrize('build', [image_folder, caption_folder])
def test_a_wrong_folder_is_named_with_what_was_expected(tmp_path, build):
    with pytest.raises(FileNotFoundError, match=r'nowhere.* does not exist; expected .*pictures'):
        build(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match=r'no .*pictures .*; expected'):
        build(tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileNotFoundError, match='is not a folder'):
        build(tmp_path / 'file')


def test_a_damaged_picture_is_replaced_counted_and_named_once(class_folder, log):
    damaged = class_folder / 'class1' / '04.png'
    damaged.write_bytes(damaged.read_bytes()[:200])
    dataset = image_folder(class_folder, max_damaged=0.1)
    index = [dataset.get_data_info(i)['img_path'] for i in range(12)].index(str(damaged))
    visits = [dataset[Visit(index, (0, 5))]['data_samples'] for _ in range(3)]
    assert visits[0] == visits[1] == visits[2]
    assert visits[0]['sample_idx'] != index
    assert dataset.num_damaged == 1
    assert [r.levelno for r in log.records if str(damaged) in r.getMessage()] == [logging.WARNING]


def test_workers_share_the_count_of_damaged_pictures(class_folder):
    for path in class_folder.glob('class1/*.png'):
        path.write_bytes(b'')
    dataset = image_folder(class_folder, max_damaged=0.5)
    labels = [int(label) for batch in DataLoader(dataset, num_workers=2) for label in batch['data_samples']['label']]
    assert len(labels) == 12
    assert 1 not in labels
    assert dataset.num_damaged == 4


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_damaged_pictures_stop_with_one_line(class_folder, workers, monkeypatch):
    # torch waits this long for each worker of a loader that failed.
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)
    for path in class_folder.glob('class1/*.png'):
        path.write_bytes(b'')
    with pytest.raises(TooManyDamaged) as stopped:
        list(DataLoader(image_folder(class_folder, max_damaged=0.2, tolerated_damaged=0), num_workers=workers))
    # Two workers may each find one in the same instant, and both are counted when the first one stops.
    found = re.match(
        r'([34]) damaged pictures among 12, more than max_damaged=0\.2 allows; the last is ', str(stopped.value)
    )
    assert found
    assert workers or found[1] == '3'
    assert '\n' not in str(stopped.value)
    del stopped
    gc.collect()


def test_only_damaged_pictures_stop_even_if_all_are_allowed(class_folder):
    for path in class_folder.glob('*/*.png'):
        path.write_bytes(b'')
    with pytest.raises(TooManyDamaged, match='12 damaged'):
        image_folder(class_folder, max_damaged=1)[0]


def test_errors_of_a_transform_are_not_taken_for_damage(class_folder):
    def wrong(results):
        raise ValueError('a mistake')

    dataset = DATASETS.build(dict(type='ImageFolder', data_root=str(class_folder), pipeline=[wrong]))
    with pytest.raises(ValueError, match='a mistake'):
        dataset[0]


def test_a_share_outside_0_to_1_is_refused(class_folder):
    with pytest.raises(ValueError, match=r'max_damaged=2 must be a share in \[0, 1\]'):
        image_folder(class_folder, max_damaged=2)


def test_indices_follow_sequence_rules(class_folder):
    dataset = image_folder(class_folder)
    assert dataset[-1]['data_samples']['sample_idx'] == 11
    with pytest.raises(IndexError, match='index 12 is outside a dataset of 12'):
        dataset[12]


def test_captions_come_from_text_or_json(tmp_path, picture):
    for i, name in enumerate('abcd'):
        picture(tmp_path / 'sub' / f'{name}.png', seed=i)
    (tmp_path / 'sub' / 'a.txt').write_text('\ufeffone\n\n  two  \n', encoding='utf-8')
    (tmp_path / 'sub' / 'b.json').write_text(json.dumps(dict(caption='a cat 猫 🐈')))
    (tmp_path / 'sub' / 'c.json').write_text(json.dumps(dict(caption=['x', 'y'])))
    (tmp_path / 'sub' / 'd.txt').write_text('from text')
    (tmp_path / 'sub' / 'd.json').write_text(json.dumps(dict(caption='from json')))
    dataset = caption_folder(tmp_path)
    assert [dataset.get_data_info(i)['captions'] for i in range(4)] == [
        ['one', 'two'],
        ['a cat 猫 🐈'],
        ['x', 'y'],
        ['from text'],
    ]
    assert [dataset[i]['data_samples']['text'] for i in range(4)] == ['one', 'a cat 猫 🐈', 'x', 'from text']


def test_unreadable_captions_are_named_counted_and_empty(tmp_path, picture, log):
    contents = dict(
        fine=('.txt', b'fine'),
        none=('.txt', b'\n \n'),
        latin=('.txt', 'café'.encode('latin-1')),
        broken=('.json', b'{'),
        field=('.json', b'{"other": 1}'),
        list=('.json', b'[1]'),
    )
    for name, (suffix, content) in contents.items():
        picture(tmp_path / f'{name}.png')
        (tmp_path / f'{name}{suffix}').write_bytes(content)
    picture(tmp_path / 'missing.png')
    dataset = caption_folder(tmp_path)
    texts = [[dataset[i]['data_samples']['text'] for i in range(len(dataset))] for _ in range(2)]
    assert texts[0] == texts[1]
    assert sorted(texts[0]) == ['', '', '', '', '', '', 'fine']
    assert dataset.num_uncaptioned == 6
    for name in ('none', 'latin', 'broken', 'field', 'list', 'missing'):
        assert sum(f'{name}.png' in record.getMessage() for record in log.records) == 1


def test_digits_have_a_fixed_split_and_any_size():
    parts = [DATASETS.build(dict(type='DigitsDataset', size=16, split=s, pipeline=PIPELINE)) for s in ('train', 'test')]
    assert [len(part) for part in parts] == [1437, 360]
    assert parts[0].metainfo['classes'] == tuple('0123456789')
    pipeline = [dict(type='PackInputs')]
    sizes = [DATASETS.build(dict(type='DigitsDataset', size=size, split='all', pipeline=pipeline)) for size in (8, 32)]
    originals, larger = (dataset[3] for dataset in sizes)
    assert originals['data_samples'] == larger['data_samples']
    assert larger['inputs'].shape == (3, 32, 32)
    assert max(int(sizes[0][i]['inputs'].max()) for i in range(9)) == 255
    shrunk = larger['inputs'].float().unflatten(2, (8, 4)).unflatten(1, (8, 4)).mean(dim=(2, 4))
    assert (shrunk - originals['inputs'].float()).abs().mean() < 20


@pytest.mark.parametrize('wrong', [dict(size=4), dict(split='val')])
def test_wrong_digits_are_refused(wrong):
    with pytest.raises(ValueError, match=r"size=4 must be|split='val' must be"):
        DATASETS.build(dict(type='DigitsDataset', **wrong))


def test_the_dataset_crosses_to_spawned_workers(class_folder):
    with warnings.catch_warnings():
        warnings.simplefilter('error', ResourceWarning)
        loader = DataLoader(image_folder(class_folder), num_workers=1, multiprocessing_context='spawn', batch_size=12)
        assert next(iter(loader))['inputs'].shape == (12, 3, 16, 16)

"""The reader of digits on real pictures, the prompts of the six kinds, and the judgement of pictures."""

import json

import numpy as np
import pytest

from pixnerd_plugin.datasets import CaptionedDigits
from pixnerd_plugin.datasets.captioned_digits import draw_digits
from pixnerd_plugin.datasets.digit_scenes import (
    DIGITS,
    NEW_COLOURS,
    SHAPES,
    Digit,
    Scene,
    is_new_colour_of,
    is_new_pair,
)
from pixnerd_plugin.datasets.digits import clear_digits
from pixnerd_plugin.evaluation.digit_benchmark import check_entry, digit_prompts, judge, score_pictures
from pixnerd_plugin.evaluation.digit_reader import read_digits
from pixnerd_plugin.evaluation.text_benchmarks import GENEVAL_TASKS, read_geneval_scores
from pixnerd_plugin.images import save_png
from tests.captions import check_caption


def picture(*digits, shape=(32, 64), background='black'):
    """A real picture of ``(value, colour, (top, left, side))``, from scans that the reader was not trained on."""
    images, labels = clear_digits('test')
    scene = Scene(shape, background, tuple(Digit(*digit) for digit in digits), '')
    return draw_digits(scene, [images[labels == value][0] for value, _, _ in digits])


def test_unseen_pictures_are_read_without_a_fault():
    dataset = CaptionedDigits(num=40, split='test', held_out=False, seed=5)
    for index in range(40):
        scene = dataset.scene(index)
        background, found = read_digits(dataset[index]['img'])
        assert background == scene.background
        assert sorted((digit.value, digit.colour) for digit in found) == sorted(
            (digit.value, digit.colour) for digit in scene.digits
        )
        for digit, (top, left, side) in zip(
            found, sorted((d.box for d in scene.digits), key=lambda b: b[1]), strict=True
        ):
            if scene.shape == (32, 64):
                assert abs(digit.center[0] - top - side / 2) < side / 4
                assert abs(digit.center[1] - left - side / 2) < side / 4


def test_a_new_colour_is_named_and_an_empty_picture_is_empty():
    background, found = read_digits(picture((3, 'orange', (2, 2, 28)), (7, 'pink', (2, 34, 28)), background='white'))
    assert background == 'white'
    assert [(digit.value, digit.colour) for digit in found] == [(3, 'orange'), (7, 'pink')]
    assert set(NEW_COLOURS) == {'orange', 'pink'}
    assert read_digits(picture(background='grey')) == ('grey', [])


@pytest.mark.parametrize('unseen', [False, True])
def test_prompts_are_of_six_kinds_and_in_known_words(unseen):
    entries = digit_prompts(unseen, per_task=20)
    assert [entry['tag'] for entry in entries[::20]] == list(GENEVAL_TASKS)
    for entry in entries:
        check_entry(entry)
        assert tuple(entry['size']) in SHAPES
        check_caption(entry['prompt'])
        for wanted in entry['include']:
            if entry['tag'] in ('colors', 'color_attr'):
                assert is_new_colour_of(DIGITS.index(wanted['class']), wanted['color']) == unseen
    assert entries == digit_prompts(unseen, per_task=20)
    assert entries != digit_prompts(unseen, per_task=20, seed=1)


THREE, FIVE = {'class': 'three', 'count': 1}, {'class': 'five', 'count': 1}
LEFT = [FIVE, dict(THREE, position=['left of', 0])]
BESIDE = (3, 'red', (2, 2, 28)), (5, 'blue', (2, 34, 28))


@pytest.mark.parametrize(
    ('include', 'digits', 'follows'),
    [
        (LEFT, BESIDE, True),
        (LEFT, [(5, 'blue', (2, 2, 28)), (3, 'red', (2, 34, 28))], False),
        (LEFT, BESIDE[:1], False),
        (
            [{'class': 'three', 'count': 1, 'color': 'red'}, {'class': 'five', 'count': 1, 'color': 'blue'}],
            BESIDE,
            True,
        ),
        (
            [{'class': 'three', 'count': 1, 'color': 'blue'}, {'class': 'five', 'count': 1, 'color': 'red'}],
            BESIDE,
            False,
        ),
        ([THREE], BESIDE, False),
        ([{'class': 'four', 'count': 2}], [(4, 'red', (2, 2, 28)), (4, 'cyan', (2, 34, 28))], True),
        ([{'class': 'four', 'count': 3}], [(4, 'red', (2, 2, 28)), (4, 'cyan', (2, 34, 28))], False),
    ],
)
def test_a_picture_follows_its_prompt_or_not(include, digits, follows):
    entry = dict(tag='position', prompt='', include=include)
    check_entry(entry)
    correct, reading = judge(entry, picture(*digits))
    assert correct == follows
    assert reading.endswith(' on black')
    assert not judge(dict(entry, background='white'), picture(*digits))[0]


def test_above_is_not_beside():
    entry = dict(include=[FIVE, dict(THREE, position=['above', 0])])
    assert not judge(entry, picture(*BESIDE))[0]
    stacked = picture((3, 'red', (2, 2, 28)), (5, 'blue', (34, 2, 28)), shape=(64, 32))
    assert judge(entry, stacked)[0]


def test_scores_are_written_as_geneval_writes_them(tmp_path):
    entries = [dict(entry, include=[THREE]) for entry in digit_prompts(False, 1)]
    for index, entry in enumerate(entries):
        folder = tmp_path / f'{index:05d}'
        folder.mkdir()
        (folder / 'metadata.jsonl').write_text(json.dumps(dict(entry, background='black')))
        save_png(folder / 'samples/0000.png', picture((3, 'red', (2, 2, 28)), shape=(32, 32)))
        save_png(folder / 'samples/0001.png', np.zeros((32, 32, 3), np.uint8))
    results = list(score_pictures(tmp_path))
    assert [result['correct'] for result in results] == [True, False] * 6
    assert results[0]['reason'] == 'red three on black'
    path = tmp_path / 'results.jsonl'
    path.write_text('\n'.join(map(json.dumps, results)))
    assert read_geneval_scores(path) == dict.fromkeys([*GENEVAL_TASKS, 'overall'], 0.5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(include=[]), 'include is'),
        (dict(include=[{'class': 'dog', 'count': 1}]), "class is 'dog', not one of zero"),
        (dict(include=[{'class': 'two', 'count': 0}]), 'count is 0'),
        (dict(include=[{'class': 'two', 'count': 1, 'color': 'beige'}]), "color is 'beige'"),
        (dict(include=[{'class': 'two', 'count': 1, 'position': ['near', 0]}]), 'position is'),
        (dict(include=[{'class': 'two', 'count': 1, 'position': ['above', 3]}]), 'there are 1 objects'),
        (dict(background='sky'), "background is 'sky'"),
    ],
)
def test_prompts_for_other_pictures_are_refused(change, message, tmp_path):
    folder = tmp_path / '00000'
    folder.mkdir()
    entry = dict(tag='counting', prompt='x', include=[{'class': 'two', 'count': 1}]) | change
    (folder / 'metadata.jsonl').write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=message) as fault:
        list(score_pictures(tmp_path))
    assert 'metadata.jsonl' in str(fault.value)
    with pytest.raises(FileNotFoundError, match='no pictures of GenEval'):
        list(score_pictures(folder))


def test_seen_prompts_ask_for_nothing_that_training_never_shows():
    """What the caption of two digits says holds in reading order, as in training."""
    pairs = [e for e in digit_prompts(False, 60) if e['tag'] in ('two_object', 'color_attr')]
    values = [[DIGITS.index(wish['class']) for wish in entry['include']] for entry in pairs]
    axes = [int(entry['size'][0] > entry['size'][1]) for entry in pairs]
    assert {0, 1} == set(axes)
    assert not any(is_new_pair(*pair, axis) for pair, axis in zip(values, axes, strict=True))


def test_more_digits_than_can_be_tried_in_all_orders_are_refused():
    six = {'class': 'one', 'count': 6, 'position': None}
    check_entry(dict(include=[six]))
    with pytest.raises(ValueError, match='include asks for more than 6 digits'):
        check_entry(dict(include=[six, {'class': 'two', 'count': 1}]))
    assert not judge(dict(include=[six]), picture((1, 'red', (2, 2, 28))))[0]

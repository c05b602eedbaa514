"""Captioned digits: what an index gives, that captions tell the truth, and what training never shows."""

import re

import numpy as np
import pytest

from pixnerd_plugin.datasets import BucketBatchSampler, CaptionedDigits, ResumableSampler
from pixnerd_plugin.datasets.digit_scenes import (
    COLOURS,
    COUNTS,
    DEFAULT_BACKGROUND,
    DIGITS,
    LINE_WORDS,
    NEW_COLOURS,
    PLURALS,
    SHAPES,
    draw_scene,
    is_new_background_of,
    is_new_colour_of,
    is_new_count,
    is_new_pair,
    noun,
)
from pixnerd_plugin.datasets.digits import clear_digits
from tests.captions import check_caption


@pytest.fixture(scope='module')
def digits():
    return CaptionedDigits(num=600)


@pytest.fixture(scope='module')
def scenes(digits):
    return [digits.scene(index) for index in range(len(digits))]


def test_an_index_alone_decides_picture_and_caption(digits):
    again = CaptionedDigits(num=3, pipeline=[])
    for index in range(3):
        one, other = digits[index], again[index]
        np.testing.assert_array_equal(one['img'], other['img'])
        assert one['text'] == other['text'] == again.captions(index)[0]
        assert one['img'].shape == (*again.shape_of(index), 3)
    assert (CaptionedDigits(num=1, seed=1).scene(0)) != digits.scene(0)


def test_a_larger_scale_draws_the_same_pictures(digits):
    fine = CaptionedDigits(num=8, scale=4)
    for index in range(8):
        height, width = digits.shape_of(index)
        assert fine.shape_of(index) == (4 * height, 4 * width)
        small = fine[index]['img'].reshape(height, 4, width, 4, 3).mean((1, 3))
        assert np.abs(small - digits[index]['img']).mean() < 1.5


def test_captions_are_made_of_known_words_and_short(scenes):
    captions = {scene.caption for scene in scenes}
    assert len(captions) > 400
    for caption in captions:
        check_caption(caption)


def test_digits_do_not_touch_each_other_or_the_rim(scenes):
    for scene in scenes:
        covered = np.zeros(scene.shape, int)
        for digit in scene.digits:
            top, left, side = digit.box
            assert top > 0
            assert left > 0
            assert top + side < scene.shape[0]
            assert left + side < scene.shape[1]
            covered[top - 1 : top + side + 1, left - 1 : left + side + 1] += 1
        assert covered.max() == 1


def test_captions_tell_what_is_where(scenes):
    """Read each caption by rules of its own."""
    name = r'an? (?:(\w+) )?(\w+)'
    counted = 0
    for scene in scenes:
        caption, _, background = scene.caption.partition(' on ')
        assert background in ('', scene.background)
        if pair := re.fullmatch(rf'{name} (?:to the )?(left of|right of|above|over|below|under) {name}', caption):
            one, other = scene.digits if pair[3] in ('left of', 'above', 'over') else scene.digits[::-1]
            assert [(pair[1], pair[2]), (pair[4], pair[5])] == [
                (pair[1] and one.colour, DIGITS[one.value]),
                (pair[4] and other.colour, DIGITS[other.value]),
            ]
            axis = 0 if 'left' in pair[3] or 'right' in pair[3] else 1
            first, second = (digit.box[1 - axis] for digit in scene.digits)
            assert second >= first + scene.digits[0].box[2]
            counted += 1
        elif plural := re.fullmatch(r'(two|three|four) (?:(\w+) )?(\w+s)( in a row| in a column)?', caption):
            assert COUNTS[len(scene.digits)] == plural[1]
            assert {PLURALS[digit.value] for digit in scene.digits} == {plural[3]}
            assert {digit.colour for digit in scene.digits} == {plural[2] or scene.digits[0].colour}
            counted += 1
        else:
            line = next((words for axis in LINE_WORDS for words in axis if caption.endswith(words)), '')
            names = re.split(' , | and ', caption.removesuffix(line).strip())
            said = [re.fullmatch(name, part).groups() for part in names]
            shown = [(digit.colour if said[0][0] else None, DIGITS[digit.value]) for digit in scene.digits]
            assert said == shown  # in reading order
    assert counted > 200


def test_training_never_shows_what_is_held_out(scenes):
    for scene in scenes:
        values = [digit.value for digit in scene.digits]
        assert not any(is_new_colour_of(digit.value, digit.colour) for digit in scene.digits)
        if len(values) == 1:
            assert not is_new_background_of(values[0], scene.background)
            continue
        if len(set(values)) == 1:
            assert not is_new_count(len(values), values[0])
        if not scene.caption.startswith(tuple(COUNTS.values())):
            tops = [digit.box[0] + digit.box[2] / 2 for digit in scene.digits]
            axis = int(max(tops) - min(tops) > scene.digits[0].box[2] / 2)
            assert not any(is_new_pair(values[i], values[j], axis) for j in range(len(values)) for i in range(j))
    shown = CaptionedDigits(num=300, held_out=False)
    assert any(is_new_colour_of(d.value, d.colour) for index in range(300) for d in shown.scene(index).digits)


def test_every_digit_has_one_new_colour_and_every_colour_is_new_to_one():
    new = [(value, colour) for value in range(10) for colour in COLOURS if is_new_colour_of(value, colour)]
    assert sorted(value for value, _ in new) == list(range(10))
    assert {colour for _, colour in new} == set(COLOURS)
    assert 15 <= sum(is_new_pair(a, b, axis) for a in range(10) for b in range(10) for axis in (0, 1)) <= 60


def test_the_three_shapes_come_in_batches_of_one(digits):
    sampler = BucketBatchSampler(ResumableSampler(digits, seed=0), batch_size=8)
    assert sorted(sampler.buckets) == sorted(SHAPES)
    batch = next(iter(sampler))
    assert len({digits[index]['img'].shape for index in batch}) == 1


def test_one_caption_in_one_shape_has_one_arrangement(scenes):
    arrangements = {}
    for scene in scenes:
        said = scene.caption.partition(' on ')[0]
        if not scene.caption.endswith(f' on {scene.background}'):
            assert scene.background == DEFAULT_BACKGROUND
        words = tuple(word for word in said.split() if word not in COLOURS)
        boxes = [digit.box for digit in scene.digits]
        assert arrangements.setdefault((scene.shape, words), boxes) == boxes
    assert len(arrangements) < len(scenes)


def digits_of(seed, **options):
    return draw_scene(np.random.default_rng(seed), SHAPES[0], **options).digits


def test_a_new_colour_is_drawn_on_request_alone(scenes):
    assert not any(digit.colour in NEW_COLOURS for scene in scenes for digit in scene.digits)
    taught = CaptionedDigits(num=20, colours=('orange',))
    assert {digit.colour for index in range(20) for digit in taught.scene(index).digits} == {'orange'}
    assert taught.fingerprint != CaptionedDigits(num=20).fingerprint
    with pytest.raises(ValueError, match="colours has 'teal', not one of red, green"):
        CaptionedDigits(colours=('teal',))
    with pytest.raises(ValueError, match=r"colours=\('red',\) must be two or more, a new one, or go with held_out"):
        CaptionedDigits(colours=('red',))
    assert CaptionedDigits(num=2, colours=('red',), held_out=False).scene(0).digits[0].colour == 'red'
    fours = next(seed for seed in range(600) if {d.value for d in digits_of(seed)} == {4})
    with pytest.raises(ValueError, match='leave none for fours'):
        digits_of(fours, colours=('red',))


def test_articles():
    assert [noun(8, None), noun(1, None), noun(3, 'red'), noun(3, 'orange')] == [
        'an eight',
        'a one',
        'a red three',
        'an orange three',
    ]


def test_ambiguous_scans_are_left_out():
    images, labels = clear_digits('train')
    assert len(images) == len(labels) == 1323
    assert np.bincount(labels).min() == 100


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num=0), 'num=0 must be a whole number of pictures'),
        (dict(scale=3), 'scale=3 must be 1, 2 or 4'),
        (dict(split='valid'), "split='valid' must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CaptionedDigits(**arguments)

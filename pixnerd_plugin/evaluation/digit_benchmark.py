"""GenEval in miniature: prompts of its six kinds for coloured digits, and whether a picture follows its prompt.

A prompt is a line of metadata as GenEval has it (``tag``, ``prompt``, ``include`` with ``class``, ``count``, ``color``
and ``position``), and besides the ``size`` of its picture and its ``background``, black if it names none. The check is
stricter than GenEval's: what is asked for must be there, and no other digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pixnerd_plugin.datasets.decode import decode_image
from pixnerd_plugin.datasets.digit_scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DEFAULT_BACKGROUND,
    DIGITS,
    NEW_COLOURS,
    PAIR_WORDS,
    PLURALS,
    SHAPES,
    is_new_background_of,
    is_new_colour_of,
    is_new_count,
    is_new_pair,
    join,
    noun,
)
from pixnerd_plugin.formats.plain_file import parse_json
from pixnerd_plugin.formats.schema import naming, shown
from pixnerd_plugin.formats.text_file import read_text

from .digit_reader import Found, read_digits
from .text_benchmarks import GENEVAL_TASKS, MAX_FILE

_SQUARE, _WIDE, _TALL = SHAPES
_MOST = 6  # digits of a prompt: the orders in which they may be found are all tried
_OFFSETS = {'left of': (0, -1), 'right of': (0, 1), 'above': (-1, 0), 'below': (1, 0)}


def digit_prompts(unseen: bool, per_task: int = 25, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of the six tasks, ``per_task`` each.

    Args:
        unseen: of combinations that training never shows, instead of those that it does: a digit on a background
            (single object), two digits in one picture, a number of a digit, a colour of a digit, two digits in a place.
        per_task: number of prompts of each task.
        seed: another seed, other prompts.
    """
    rng = np.random.default_rng((seed, int(unseen)))
    makers = (_single, _two, _count, _coloured, _placed, _attributed)
    return [
        dict(tag=task, **maker(rng, unseen))
        for task, maker in zip(GENEVAL_TASKS, makers, strict=True)
        for _ in range(per_task)
    ]


def follow(
    draw: Callable[[list[str], list[int], tuple[int, int]], np.ndarray],
    entries: Sequence[dict[str, Any]],
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, float]:
    """Share of pictures that follow their prompt, by task; one picture a prompt.

    Args:
        draw: from prompts, seeds and the size of all pictures to pictures (B, H, W, 3) uint8.
        entries: as `digit_prompts` gives them.
        seed: of the first prompt's picture; the others count up.
        batch_size: pictures drawn at once.
    """
    right: dict[str, list[bool]] = {entry['tag']: [] for entry in entries}
    numbered = list(enumerate(entries, start=seed))
    with tqdm(total=len(entries), unit='picture', disable=None) as bar:
        for size in SHAPES:
            same = [(number, entry) for number, entry in numbered if tuple(entry['size']) == size]
            for start in range(0, len(same), batch_size):
                seeds, batch = zip(*same[start : start + batch_size], strict=True)
                for entry, picture in zip(batch, draw([e['prompt'] for e in batch], list(seeds), size), strict=True):
                    right[entry['tag']].append(judge(entry, picture)[0])
                bar.update(len(batch))
    return {task: sum(found) / len(found) for task, found in right.items() if found}


def _single(rng: np.random.Generator, unseen: bool) -> dict[str, Any]:
    while True:
        value, background = int(rng.integers(10)), str(rng.choice(list(BACKGROUNDS)))
        if is_new_background_of(value, background) == unseen:
            break
    return _entry(f'{noun(value, None)} on {background}', [_object(value)], _SQUARE, background=background)


def _coloured(rng: np.random.Generator, unseen: bool) -> dict[str, Any]:
    value, colour = _value_and_colour(rng, unseen)
    return _entry(noun(value, colour), [_object(value, colour)], _SQUARE)


def _count(rng: np.random.Generator, unseen: bool) -> dict[str, Any]:
    while True:
        count, value = int(rng.integers(2, 5)), int(rng.integers(10))
        if is_new_count(count, value) == unseen:
            break
    return _entry(f'{COUNTS[count]} {PLURALS[value]}', [_object(value, count=count)], _any_shape(rng))


def _two(rng: np.random.Generator, unseen: bool) -> dict[str, Any]:
    axis = int(rng.integers(2))
    while True:
        first, second = (int(value) for value in rng.choice(10, 2, replace=False))
        # Unseen are those that stand together in no picture, seen those that stand in this place in some.
        if (first + second == 9) if unseen else not is_new_pair(first, second, axis):
            break
    prompt = join([noun(first, None), noun(second, None)])
    return _entry(prompt, [_object(first), _object(second)], (_WIDE, _TALL)[axis])


def _placed(rng: np.random.Generator, unseen: bool) -> dict[str, Any]:
    axis = int(rng.integers(2))
    while True:
        first, second = (int(value) for value in rng.choice(10, 2, replace=False))
        if is_new_pair(first, second, axis) == unseen:
            break
    if rng.random() < 0.5:
        what, where, than = first, 0, second
    else:
        what, where, than = second, 1, first
    words = PAIR_WORDS[axis][where]
    position = [words.removeprefix('to the '), 0]
    return _entry(
        f'{noun(what, None)} {words} {noun(than, None)}',
        [_object(than), dict(_object(what), position=position)],
        (_WIDE, _TALL)[axis],
    )


def _attributed(rng: np.random.Generator, unseen: bool) -> dict[str, Any]:
    axis = int(rng.integers(2))
    while True:
        one, other = _value_and_colour(rng, unseen), _value_and_colour(rng, unseen)
        if one[0] != other[0] and one[1] != other[1] and not is_new_pair(one[0], other[0], axis):
            break
    return _entry(join([noun(*one), noun(*other)]), [_object(*one), _object(*other)], (_WIDE, _TALL)[axis])


def _value_and_colour(rng: np.random.Generator, unseen: bool) -> tuple[int, str]:
    while True:
        value, colour = int(rng.integers(10)), str(rng.choice(list(COLOURS)))
        if is_new_colour_of(value, colour) == unseen:
            return value, colour


def _any_shape(rng: np.random.Generator) -> tuple[int, int]:
    return SHAPES[int(rng.integers(3))]


def _object(value: int, colour: str | None = None, count: int = 1) -> dict[str, Any]:
    entry: dict[str, Any] = {'class': DIGITS[value], 'count': count}
    return entry | {'color': colour} if colour else entry


def _entry(
    prompt: str, include: list[dict[str, Any]], size: tuple[int, int], background: str = DEFAULT_BACKGROUND
) -> dict[str, Any]:
    return dict(prompt=prompt, include=include, size=list(size), background=background)


def check_entry(entry: dict[str, Any]) -> None:
    """Raise a ValueError, in one line, if a line of metadata asks for what is no scene of digits."""
    include = entry.get('include')
    if type(include) is not list or not include or not all(type(wanted) is dict for wanted in include):
        raise ValueError(f'include is {shown(include)}, not a list of what is wanted')
    for wanted in include:
        if wanted.get('class') not in DIGITS:
            raise ValueError(f'class is {shown(wanted.get("class"))}, not one of {", ".join(DIGITS)}')
        if type(wanted.get('count')) is not int or not 1 <= wanted['count'] <= _MOST:
            raise ValueError(f'count is {shown(wanted.get("count"))}, not a number from 1 to {_MOST}')
        if wanted.get('color') not in (None, *COLOURS, *NEW_COLOURS):
            raise ValueError(f'color is {shown(wanted["color"])}, not one of {", ".join(COLOURS | NEW_COLOURS)}')
        place = wanted.get('position')
        if place is not None and (type(place) is not list or len(place) != 2 or place[0] not in _OFFSETS):
            raise ValueError(f'position is {shown(place)}, not ["left of", 0] or the like')
        if place is not None and (type(place[1]) is not int or not 0 <= place[1] < len(include)):
            raise ValueError(f'position is {shown(place)}, and there are {len(include)} objects')
    if sum(wanted['count'] for wanted in include) > _MOST:
        raise ValueError(f'include asks for more than {_MOST} digits')
    if entry.get('background') not in (None, *BACKGROUNDS):
        raise ValueError(f'background is {shown(entry["background"])}, not one of {", ".join(BACKGROUNDS)}')


def score_pictures(folder: Path) -> Iterator[dict[str, Any]]:
    """Judge the pictures that ``tools/text_benchmark.py geneval`` drew, in the form of GenEval's results.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if a prompt is not one of `digit_prompts`' form; the message names its file.
    """
    described = sorted(folder.glob('*/metadata.jsonl'))
    if not described:
        raise FileNotFoundError(f'no pictures of GenEval in {folder}: draw them with tools/text_benchmark.py geneval')
    for path in described:
        entry = parse_json(read_text(path, 'metadata of a prompt', MAX_FILE))
        with naming(path):
            if type(entry) is not dict:
                raise ValueError(f'it is {shown(entry)}, not an object')
            check_entry(entry)
        for picture in sorted(path.parent.glob('samples/*.png')):
            correct, reading = judge(entry, np.asarray(decode_image(str(picture))))
            name = str(picture.relative_to(folder))
            yield dict(filename=name, tag=entry.get('tag'), prompt=entry.get('prompt'), correct=correct, reason=reading)


def judge(entry: dict[str, Any], pixels: np.ndarray) -> tuple[bool, str]:
    """Whether a picture (H, W, 3) uint8 follows a prompt, and what was found in it."""
    background, found = read_digits(pixels)
    reading = ', '.join(f'{digit.colour} {DIGITS[digit.value]}' for digit in found) or 'nothing'
    reading = f'{reading} on {background}'
    if entry.get('background') not in (None, background):
        return False, reading
    wanted = [(wish, index) for index, wish in enumerate(entry['include']) for _ in range(wish['count'])]
    if len(found) != len(wanted):
        return False, reading
    return any(_fits(order, wanted) for order in permutations(found)), reading


def _fits(found: Sequence[Found], wanted: list[tuple[dict[str, Any], int]]) -> bool:
    for digit, (wish, _) in zip(found, wanted, strict=True):
        if DIGITS[digit.value] != wish['class'] or wish.get('color') not in (None, digit.colour):
            return False
    for digit, (wish, _) in zip(found, wanted, strict=True):
        if wish.get('position') is None:
            continue
        place, reference = wish['position']
        down, right = _OFFSETS[place]
        for other, (_, index) in zip(found, wanted, strict=True):
            if index == reference:
                rows, columns = digit.center[0] - other.center[0], digit.center[1] - other.center[1]
                along, across = (rows * down, columns) if down else (columns * right, rows)
                # As GenEval: on that side, and more so than on any other.
                if along <= abs(across):
                    return False
    return True

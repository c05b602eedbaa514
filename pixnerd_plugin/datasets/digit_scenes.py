"""Scenes of coloured digits, and English for them: the words, the layouts, and what training never shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
PLURALS = ('zeros', 'ones', 'twos', 'threes', 'fours', 'fives', 'sixes', 'sevens', 'eights', 'nines')
COUNTS = {2: 'two', 3: 'three', 4: 'four'}
COLOURS = dict(
    red=(222, 38, 38), green=(30, 165, 60), blue=(50, 90, 235), yellow=(240, 195, 20), purple=(165, 50, 205),
    cyan=(30, 190, 205),
)  # fmt: skip
# Known to the tokenizer and never drawn, so that a colour can be taught afterwards.
NEW_COLOURS = dict(orange=(240, 125, 20), pink=(250, 130, 185))
BACKGROUNDS = dict(black=(14, 14, 18), white=(244, 244, 240), grey=(120, 120, 122), brown=(88, 60, 40))
_NAMES_OF_COLOURS, _NAMES_OF_BACKGROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)
DEFAULT_BACKGROUND = _NAMES_OF_BACKGROUNDS[0]
"""Where digits stand if the caption does not say."""

SHAPES = ((32, 32), (32, 64), (64, 32))
"""Square, wide and tall pictures: (height, width) in pixels."""

PAIR_WORDS = (('to the left of', 'to the right of'), ('above', 'below'))
_OTHER_PAIR_WORDS = (('left of', 'right of'), ('over', 'under'))
LINE_WORDS = (('in a row', 'from left to right'), ('in a column', 'from top to bottom'))

# A plural is two tokens, so that it means what its singular means.
_ENDINGS = ('##s', '##es')
_PHRASES = ' '.join(word for words in (*PAIR_WORDS, *_OTHER_PAIR_WORDS, *LINE_WORDS) for word in words)
WORDS = tuple(
    dict.fromkeys(
        [*DIGITS, *_ENDINGS, *COLOURS, *NEW_COLOURS, *BACKGROUNDS, *_PHRASES.split(), 'an', 'the', 'and', 'on', ',']
    )
)
"""All words of the captions, and the endings of plurals, in an order that files may rely on."""

MAX_WORDS = 16
"""No caption is longer, endings counted as words."""

_KINDS = ('single', 'pair', 'line', 'count')
# Pairs most of all: which digit stands where is learned last.
_SHARES_SQUARE, _SHARES_LONG = (0.45, 0.15, 0, 0.4), (0.1, 0.45, 0.2, 0.25)
_SHARES_BACKGROUND = (0.55, 0.15, 0.15, 0.15)


@dataclass(frozen=True)
class Digit:
    """One digit of a scene: its value, its colour by name, and the square it fills in pixels (top, left, side)."""

    value: int
    colour: str
    box: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn, and its caption."""

    shape: tuple[int, int]
    background: str
    digits: tuple[Digit, ...]
    caption: str


def is_new_colour_of(value: int, colour: str) -> bool:
    """Whether training never shows this digit in this colour: one of the six for each digit."""
    return colour in COLOURS and _NAMES_OF_COLOURS.index(colour) == (7 * value + 2) % 6


def is_new_background_of(value: int, background: str) -> bool:
    """Whether training never shows this digit alone on this background: one of the three named ones for each digit."""
    return _NAMES_OF_BACKGROUNDS.index(background) == value % 3 + 1


def is_new_pair(first: int, second: int, axis: int) -> bool:
    """Whether training never shows ``first`` left of (axis 0) or above (axis 1) ``second``.

    A ninth of all pairs is never seen together at all (those that add up to nine), and an eighth not in this place.
    """
    return first + second == 9 or (first != second and (3 * first + second + 5 * axis) % 8 == 0)


def is_new_count(count: int, value: int) -> bool:
    """Whether training never shows ``count`` of this digit and nothing else."""
    return (count + value) % 5 == 0


def noun(value: int, colour: str | None) -> str:
    """A digit with its article: ``'a red three'``, ``'an eight'``."""
    name = f'{colour} {DIGITS[value]}' if colour else DIGITS[value]
    return f'{"an" if name[0] in "aeio" and not name.startswith("one") else "a"} {name}'


def join(parts: list[str]) -> str:
    """``'a, b and c'``, with the commas as words of their own."""
    return ' and '.join([' , '.join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def cells_of(shape: tuple[int, int], count: int, axis: int) -> list[tuple[int, int, int]]:
    """``count`` squares in a row (axis 0) or a column (axis 1), from the top left: (top, left, side).

    Of 32 pixels where they fit, else of 16: whole patches of 8 or of 16.
    """
    side = 32 if 32 * count <= shape[1 - axis] else 16
    starts = [index * side for index in range(count)]
    return [(0, start, side) if axis == 0 else (start, 0, side) for start in starts]


def quarters_of(shape: tuple[int, int]) -> list[tuple[int, int, int]]:
    """The four quarters of a square picture, row by row."""
    side = shape[0] // 2
    return [(row * side, column * side, side) for row in range(2) for column in range(2)]


def draw_shape(rng: np.random.Generator) -> tuple[int, int]:
    """Two of five pictures are square."""
    return SHAPES[_pick(rng, (0.4, 0.3, 0.3))]


def draw_scene(
    rng: np.random.Generator,
    shape: tuple[int, int],
    held_out: bool = True,
    colours: Sequence[str] = tuple(COLOURS),
) -> Scene:
    """Draw a scene of one to four digits and its caption.

    Caption and shape decide where everything is, in reading order: wherever they left a choice, distant tokens would
    have to make the same one. Open are only how a digit is written, and its colour where none is named.

    Args:
        rng: decides everything else.
        shape: one of `SHAPES`.
        held_out: leave out what training never shows.
        colours: names of the colours to choose from.
    """
    square, axis = shape[0] == shape[1], int(shape[0] > shape[1])
    kind = _KINDS[_pick(rng, _SHARES_SQUARE if square else _SHARES_LONG)]
    if square:
        axis = int(rng.integers(2))
    count = dict(single=1, pair=2, line=int(rng.integers(3, 5)), count=int(rng.integers(2, 5)))[kind]
    while True:
        values = [int(value) for value in rng.integers(0, 10, count)]
        if kind == 'count':
            values = values[:1] * count
        if not held_out or not _shows_new_values(values, kind, axis):
            break
    colours = [_draw_colour(rng, value, held_out, colours) for value in values]
    if kind == 'count':
        colours = colours[:1] * count
    if kind == 'count' and square:
        cells = quarters_of(shape)[:count]
    elif kind == 'single' and not square:
        cells = [(0, 16, 32) if axis == 0 else (16, 0, 32)]  # in the middle
    else:
        cells = cells_of(shape, count, axis)
    digits = tuple(Digit(value, colour, _box(cell)) for value, colour, cell in zip(values, colours, cells, strict=True))
    while True:
        background = _NAMES_OF_BACKGROUNDS[_pick(rng, _SHARES_BACKGROUND)]
        if not held_out or kind != 'single' or not is_new_background_of(values[0], background):
            break
    while True:
        caption = _describe(rng, kind, shape, axis, digits)
        if background != DEFAULT_BACKGROUND or rng.random() < 0.2:
            caption += f' on {background}'
        if len(caption.split()) <= MAX_WORDS:
            return Scene(shape, background, digits, caption)


def _pick(rng: np.random.Generator, shares: tuple[float, ...]) -> int:
    """An index drawn with these probabilities."""
    return int(np.searchsorted(np.cumsum(shares), rng.random(), side='right'))


def _shows_new_values(values: list[int], kind: str, axis: int) -> bool:
    if len(values) > 1 and len(set(values)) == 1 and is_new_count(len(values), values[0]):
        return True
    return kind != 'count' and any(
        is_new_pair(values[i], values[j], axis) for j in range(len(values)) for i in range(j)
    )


def _draw_colour(rng: np.random.Generator, value: int, held_out: bool, colours: Sequence[str]) -> str:
    shown = [colour for colour in colours if not (held_out and is_new_colour_of(value, colour))]
    if not shown:
        raise ValueError(f'colours={tuple(colours)} leave none for {PLURALS[value]}; add another, or held_out=False')
    return shown[int(rng.integers(len(shown)))]


def _box(cell: tuple[int, int, int]) -> tuple[int, int, int]:
    """The square that a digit fills in its cell: neighbours do not touch."""
    top, left, side = cell
    margin = side // 16
    return top + margin, left + margin, side - 2 * margin


def _describe(rng: np.random.Generator, kind: str, shape: tuple[int, int], axis: int, digits: tuple[Digit, ...]) -> str:
    coloured = rng.random() < 0.8
    names = [noun(digit.value, digit.colour if coloured else None) for digit in digits]
    if kind == 'single':
        return names[0]
    if kind == 'count':
        colour = f'{digits[0].colour} ' if coloured else ''
        line = f' {LINE_WORDS[axis][0]}' if _in_line(digits, axis) and rng.random() < 0.3 else ''
        return f'{COUNTS[len(digits)]} {colour}{PLURALS[digits[0].value]}{line}'
    if kind == 'line':
        return f'{join(names)} {LINE_WORDS[axis][int(rng.integers(2))]}'
    # "And" is beside in square and wide pictures, and above in tall ones.
    if axis == int(shape[0] > shape[1]) and rng.random() < 0.25:
        return join(names)
    before, after = (PAIR_WORDS if rng.random() < 0.7 else _OTHER_PAIR_WORDS)[axis]
    return f'{names[0]} {before} {names[1]}' if rng.random() < 0.5 else f'{names[1]} {after} {names[0]}'


def _in_line(digits: tuple[Digit, ...], axis: int) -> bool:
    """Whether digits stand beside (axis 0) or above (axis 1) each other."""
    across = [digit.box[axis] + digit.box[2] / 2 for digit in digits]
    return max(across) - min(across) < min(digit.box[2] for digit in digits) / 2

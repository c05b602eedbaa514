import argparse

import options
import pytest


@pytest.mark.parametrize(
    ('read', 'text', 'value'),
    [
        (options.size, '512x768', (512, 768)),
        (options.size, '512X768', (512, 768)),
        (options.size, '512×768', (512, 768)),
        (options.size, '64', (64, 64)),
        (options.region, '0,1,20,30', (0, 1, 20, 30)),
        (options.interval, '0.1,1', (0.1, 1.0)),
        (options.words, 'cat, dog,', ['cat', 'dog']),
        (options.numbers(1), '3', 3),
    ],
)
def test_what_people_write_is_read(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ('read', 'text'),
    [
        (options.size, '5k'),
        (options.size, '0x8'),
        (options.size, '8x8x8'),
        (options.region, '1,2,3'),
        (options.region, '1,2,3,x'),
        (options.interval, '1'),
        (options.interval, 'a,b'),
        (options.numbers(1), '0'),
        (options.numbers(0), '1.5'),
    ],
)
def test_anything_else_is_refused_by_its_value(read, text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        read(text)

import pickle
import struct
from argparse import Namespace
from collections import OrderedDict

import pytest

from pixnerd_plugin.formats.pickle_reader import MAX_OPERATIONS, Inert, read_pickle


def read(content, **makers):
    return read_pickle(content, lambda identity: identity, makers)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize(
    'value',
    [
        None,
        True,
        [0, 1, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**63, 10**100, -(10**700)],
        [0.5, float('inf'), -1e308],
        ['', 'a', 'ä' * 300, '\U0001f600', 'x' * 70000],
        ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        {'a': [1, {'b': (2, [])}], 1: 2, None: 3, 0.5: 4},
        [list(range(3000)), {i: i for i in range(3000)}],
    ],
)
def test_plain_values_come_back(protocol, value):
    assert read(pickle.dumps(value, protocol)) == value


def test_bytes():
    for value in (b'', b'x', b'x' * 300):
        assert read(pickle.dumps(value, 3)) == value
    assert read(pickle.dumps(bytearray(b'xy'), 5)) == b'xy'


@pytest.mark.parametrize('protocol', [2, 4])
def test_shared_and_circular_values_stay_so(protocol):
    shared = [1]
    both = read(pickle.dumps([shared, shared], protocol))
    assert both[0] is both[1]
    circle = [1]
    circle.append(circle)
    again = read(pickle.dumps(circle, protocol))
    assert again[1] is again
    tuple_in_itself = ([],)
    tuple_in_itself[0].append(tuple_in_itself)
    again = read(pickle.dumps(tuple_in_itself, protocol))
    assert again[0][0] is again


@pytest.mark.parametrize('protocol', [2, 4])
def test_all_else_is_known_by_name_and_not_built(protocol):
    content = [Namespace(a=1), {1, 2}, print, Namespace, range(3), frozenset((1,)), OrderedDict(a=1)]
    found = read(pickle.dumps(content, protocol))
    assert all(type(item) is Inert for item in found)
    assert [found[0].name, found[3].name] == ['argparse.Namespace'] * 2
    assert found[2].name.endswith('.print')


def test_a_maker_is_given_the_arguments():
    content = pickle.dumps([complex(1, 2), Namespace(x=1)], 2)
    found = read(content, **{'__builtin__.complex': lambda arguments: ('made', arguments)})
    assert found[0] == ('made', (1.0, 2.0))
    assert type(found[1]) is Inert


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_key_with_a_hash_of_any_cost_is_never_hashed(protocol):
    start = bytes((0x80, protocol)) + b'})q\x010'
    found = read(start + b'h\x01h\x01\x86q\x010' * 60 + b'h\x01K\x05s.')
    assert [type(name) for name in found] == [Inert]
    assert list(found.values()) == [5]


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'.',
        b'\x80',
        b'\x80\x02',
        b'\x80\x02K',
        b'\x80\x02(.',
        b'\x80\x02u.',
        b'\x80\x02}K\x01u.',
        b'\x80\x02}(K\x01u.',
        b'\x80\x02K\x01(K\x02e.',
        b'\x80\x02K\x01K\x01K\x01s.',
        b'\x80\x02h\x07.',
        b'\x80\x02j\xff\xff\xff\xff.',
        b'\x80\x02q\x00.',
        b'\x80\x02K\x01)R.',
        b'\x80\x02ca\nb\nK\x01R.',
        b'\x80\x02ca\nb',
        b'\x80\x02K\x01K\x02\x93b.',
        b'\x80\x02X\xff\xff\xff\x7fabc.',
        b'\x80\x04\x8d' + struct.pack('<Q', 2**63) + b'abc.',
        b'\x80\x02\x8b\xff\xff\xff\xff.',
        b'\x80\x02X\x01\x00\x00\x00\xff.',
        b'\x80\x02\x82\x01.',
        b'\x80\x02I1\n.',
        b'\x80\x02L' + b'9' * 10**6 + b'L\n.',
        b'\x80\x02(S"echo"\nios\nsystem\n.',
        b'\x80\x02(cos\nsystem\nS"echo"\no.',
        b'\x80\x02Q.',
        b'\x80\x02' + b'(' * 100_000 + b'l' * 100_000 + b'.',
        pickle.dumps([1, 2], 0),
        pickle.dumps([1, 2], 4)[:-1],
    ],
)
def test_malformed_pickles_are_refused(content):
    with pytest.raises(ValueError, match='its pickle') as error:
        read(content)
    assert '\n' not in str(error.value)


def test_work_is_bounded():
    with pytest.raises(ValueError, match='more than'):
        read(b'\x80\x02' + b'N' * (MAX_OPERATIONS + 1) + b'.')
    nested = read(b'\x80\x02' + b']' * (MAX_OPERATIONS // 2) + b'a' * (MAX_OPERATIONS // 2 - 10) + b'.')
    assert type(nested) is list


@pytest.mark.parametrize('name', ['\x1b[2J', 'x' * 2000])
def test_names_that_are_none(name):
    encoded = name.encode()
    text = b'X' + struct.pack('<I', len(encoded)) + encoded
    for content in (b'c' + encoded + b'\nx\n', text + text + b'\x93'):
        found = read(b'\x80\x02' + content + b'.')
        assert type(found) is Inert
        assert found.name == 'a name'


def test_keys_are_short():
    large = {2**53 - 1: 0, 2**53: 1, 'x' * 1000: 2, 'x' * 1001: 3, b'x' * 1001: 4}
    found = read(pickle.dumps(large, 3))
    names = [key.name for key in found if type(key) is Inert]
    assert names == ['a int', 'a str', 'a bytes']
    assert list(found.values()) == [0, 1, 2, 3, 4]

"""Every field of a table set to what it must not be: wrong type, out of range, absent, huge, nested, there twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_DEEP = '@deep@'
_LIST: list = []
for _ in range(600):
    _LIST = [_LIST]

JUNK = (
    *(None, True, False, 0, 1, -1, 7, 77, 2**16, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**400),
    *(0.5, -0.0, 1e308, float('nan'), float('inf')),
    *('', '1', 'x', 'os', 'os.system', '../x', '/etc/passwd', '\0', '\ud800', 'ü\n\x1b[2J', 'x' * 100_000),
    *([], {}, [1, 2], [[]], ['a', 'b'], {'type': 'os.system', '_scope_': 'evil'}, _LIST, _DEEP),
)


class Same(str):
    """A name that a dict takes for another one, and JSON for the same."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def encode(tree: Any) -> str:
    """JSON of a mutated tree."""
    return json.dumps(tree).replace(f'"{_DEEP}"', '[' * 10**5 + ']' * 10**5)


def paths(tree: Any, start: tuple = ()) -> Iterator[tuple]:
    """The places of a tree, the whole of it too."""
    yield start
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*start, key))


def sample(tree: Any, count: int, rng: random.Random) -> list[tuple[str, Any]]:
    """So many of the mutations of single fields, each with a name; beyond all of them, mutations of two fields."""
    places = [(path, index) for path in paths(tree) for index in range(len(_CHANGES)) if path or index < len(JUNK)]
    rng.shuffle(places)
    found = [(f'{path}: {_CHANGES[index][0]}', _changed(tree, path, index)) for path, index in places[:count]]
    while len(found) < count:
        (first, one), (second, two) = rng.sample(places, 2)
        # One change may remove what the other would alter.
        with suppress(TypeError, KeyError, IndexError, AttributeError):
            changed = _changed(_changed(tree, second, two), first, one)
            found.append((f'{first}: {_CHANGES[one][0]}, {second}: {_CHANGES[two][0]}', changed))
    return found


def _changed(tree: Any, path: tuple, index: int) -> Any:
    box = [_copy(tree)]
    parent, key = box, 0
    for step in path:
        parent, key = parent[key], step
    _CHANGES[index][1](parent, key)
    return box[0]


def _copy(tree: Any) -> Any:
    # Not what is deep: that is junk, which nothing changes.
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) and tree is not _LIST else tree


def _set(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def _twice(parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[Same(key)] = 'second'
    else:
        parent.insert(key, parent[key])


def _rename(parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[f'{key}x'] = parent.pop(key)
    else:
        parent.append(parent.pop(key))


def _pop(parent: Any, key: Any) -> None:
    parent.pop(key)


def _nest(parent: Any, key: Any) -> None:
    parent[key] = [parent[key]]


def _junk(index: int) -> Callable[[Any, Any], None]:
    return lambda parent, key: _set(parent, key, JUNK[index])


_CHANGES = [(f'junk {index}', _junk(index)) for index in range(len(JUNK))]
_CHANGES += [('nested', _nest), ('absent', _pop), ('twice', _twice), ('renamed', _rename)]

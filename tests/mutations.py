"""Every field of a table set to what it must not be: wrong type, out of range, absent, huge, nested, there twice."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
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


def mutations(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every mutation of every place, with a name for it."""
    for path in paths(tree):
        for index, junk in enumerate(JUNK):
            yield f'{path} = junk {index}', changed(tree, path, lambda parent, key, junk=junk: _set(parent, key, junk))
        if path:
            yield f'{path} absent', changed(tree, path, lambda parent, key: parent.pop(key))
            yield f'{path} twice', changed(tree, path, _twice)
            yield f'{path} renamed', changed(tree, path, _rename)
            yield f'{path} nested', changed(tree, path, lambda parent, key: _set(parent, key, [parent[key]]))


def sample(tree: Any, count: int, rng: random.Random) -> list[tuple[str, Any]]:
    """So many of the mutations, or all of them; those beyond all are of two fields."""
    found = list(mutations(tree))
    rng.shuffle(found)
    while len(found) < count:
        name, first = rng.choice(found)
        place = rng.choice(list(paths(first)))
        junk = rng.choice(JUNK)
        try:
            second = changed(first, place, lambda parent, key, junk=junk: _set(parent, key, junk))
        except (KeyError, IndexError, TypeError):
            continue
        found.append((f'{name}, {str(place)[:200]} = {str(junk)[:20]}', second))
    return found[:count]


def changed(tree: Any, path: tuple, change: Any) -> Any:
    if not path:
        box = [tree]
        change(box, 0)
        return box[0] if box else None
    tree = copy.deepcopy(tree)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return tree


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

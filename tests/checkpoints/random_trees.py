"""Trees of values and pickles, changed at random: of a wrong type, out of range, absent, nested, or there twice."""

import random
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Tree = Any
Place = tuple[Any, ...]

DEEP: list = []
for _ in range(500):
    DEEP = [DEEP]

# What JSON can say.
PLAIN = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        7,
        2**31,
        2**53,
        2**63,
        2**64,
        10**400,
        0.5,
        -0.0,
        1e308,
        float('nan'),
        float('inf'),
    ),
    *('', 'x', 'ema', 'F16', 'F8_E4M3', '../x', '/etc/passwd', 'a' * 10**5, '\x1b[2J', '\ud800', '1'),
    *('evilmod.registry', 'evilmod', 'os.system', 'LinearHead', 'NeuralFieldHead', 'EulerFlowSampler', 'PixNerdDiT'),
    *([], {}, [[]], [1, 2], [0.1, 1.0], ['x'] * 1000, {'type': 'evilmod.registry'}, {'_scope_': 'evilmod'}, DEEP),
)
NAMES = ('_scope_', 'type', 'x', '', 'operations', 'pixnerd_metadata', 'blocks.1000000000.norm1.weight', 'state_dict')


class Odd:
    """An object of a class that no reader knows."""


# What a pickle can say besides.
OBJECTS = (
    *((), (1, (2, (3,))), b'', b'x' * 1000, {1, 2}, frozenset((1,)), bytearray(3), Namespace(a=1), Odd(), Path('x')),
    *(print, Odd, torch.Size([1]), torch.float16, torch.device('cpu'), np.float32(1), np.ones(3), 1j, range(3)),
    *(torch.ones(1), torch.tensor(3), torch.ones(0), torch.ones(2, 3).T, torch.ones(1).expand(10**6)),
    *(torch.ones(2, dtype=torch.complex64), torch.ones(2).to(torch.float8_e5m2), torch.full((3,), float('nan'))),
    *(torch.nn.Parameter(torch.ones(2)), {(1, 2): 1, None: 2, 1.5: 3}),
)


_CONSTANT = {id(value) for value in PLAIN + OBJECTS}


def places(tree: Tree, at: Place = ()) -> Iterator[Place]:
    """Every place of a tree of dicts and lists, but none within what was put there."""
    if id(tree) in _CONSTANT:
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        yield (*at, name)
        yield from places(value, (*at, name))


def copied(tree: Tree) -> Tree:
    """A copy of the dicts and lists, of the same tensors."""
    if isinstance(tree, dict):
        return {name: copied(value) for name, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def mutate(tree: Tree, rng: random.Random, values: tuple) -> Tree:
    """A copy with one or a few values changed, absent, nested, added or under another's name."""
    tree = copied(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        known = list(places(tree))
        if not known:
            return rng.choice(values)
        # First how deep: the names of tensors would else leave hardly a try for the rest.
        depth = rng.choice(sorted({len(place) for place in known}))
        *above, name = rng.choice([place for place in known if len(place) == depth])
        parent = tree
        for step in above:
            parent = parent[step]
        action = rng.choice(('value', 'value', 'value', 'scale', 'absent', 'nested', 'name', 'twice'))
        if action == 'value':
            parent[name] = rng.choice(values)
        elif action == 'scale' and type(parent[name]) in (int, float):
            parent[name] = parent[name] * rng.choice((-1, 0, 2, 10**9, 2**62, 0.5))
        elif action == 'absent':
            del parent[name]
        elif action == 'nested':
            parent[name] = rng.choice(([parent[name]], {'x': parent[name]}, {'type': parent[name]}, [parent[name]] * 3))
        elif action == 'twice' and isinstance(parent, list):
            parent.append(parent[name])
        elif isinstance(parent, dict):
            parent[rng.choice((*NAMES, *map(str, parent)))] = parent[name]
    return tree


def doubled(text: str, rng: random.Random) -> str:
    """Sometimes, JSON with one of its entries there twice."""
    if rng.random() > 0.05 or '"' not in text or not text.startswith('{'):
        return text
    return text[:-1] + ',' + text[1:]


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Some bytes of a pickle changed, cut out, repeated, or put in from a list of operations."""
    data = bytearray(content)
    inserted = (b']', b'}', b'(', b')', b'0', b'1', b'2', b'N', b'\x85', b't', b'u', b'a', b'e', b'R', b'b', b'Q', b'.')
    inserted += (b'cevilmod\nregistry\n', b'cevilmod\nregistry\n)R', b'h\x00', b'K\x01', b'\x81', b'\x93', b'\x8f')
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(data))
        action = rng.randrange(4)
        if action == 0:
            data[start] = rng.randrange(256)
        elif action == 1:
            del data[start : start + rng.choice((1, 1, 2, 9, 100))]
        elif action == 2:
            data[start:start] = data[start : start + rng.choice((1, 4, 30, 200))]
        else:
            data[start:start] = rng.choice(inserted)
    return bytes(data)

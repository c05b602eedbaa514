"""Pickles read as data: plain values and what the caller knows how to make; all else becomes an :class:`Inert`.

Python's unpickler calls what a pickle names. This one is the same machine with a stack and a memo, without any way to
import or call: a name stays a name. Time and memory are bounded by the number of operations, and values that a pickle
refers to often are shared, never copied or walked through.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

# The pickle of XXL with its optimiser's state has some 100,000.
MAX_OPERATIONS = 10**6

# Characters of a key, or of the name of a class; longer ones are no names.
MAX_NAME = 1000


class Inert:
    """What a pickle holds besides plain values: known by name, never built. Equal to itself alone."""

    __slots__ = ('name',)

    def __init__(self, name: str):
        self.name = name


Maker = Callable[[tuple], Any]


def read_pickle(data: bytes, persistent: Callable[[Any], Any], makers: Mapping[str, Maker]) -> Any:
    """What a pickle of protocol 2 or later holds.

    Args:
        data: the pickle.
        persistent: what a persistent id (of a storage) stands for.
        makers: what ``module.name`` makes of its arguments, for the few names that are known.

    Raises:
        ValueError: if it is malformed, or of more than ``MAX_OPERATIONS``.
    """
    reader = _Reader(data, persistent, makers)
    try:
        return reader.run()
    except (LookupError, struct.error, TypeError, AttributeError, UnicodeDecodeError):
        raise ValueError(f'its pickle is malformed at byte {reader.position}') from None


class _Reader:
    def __init__(self, data: bytes, persistent: Callable[[Any], Any], makers: Mapping[str, Maker]):
        self.data = data
        self.position = 0
        self.persistent = persistent
        self.makers = makers
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPERATIONS):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f'its pickle has operation {bytes([code])!r}, which torch.save never writes')
            operation(self)
        raise ValueError(f'its pickle has more than {MAX_OPERATIONS} operations')

    def take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise ValueError('its pickle ends too early')
        return self.data[start : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        end = self.data.find(b'\n', self.position)
        if end < 0:
            raise ValueError('its pickle ends too early')
        text = self.data[self.position : end].decode()
        self.position = end + 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def top(self, size: int) -> list[Any]:
        """The last ``size`` values, taken from the stack."""
        if len(self.stack) < size:
            raise IndexError
        items = self.stack[-size:]
        del self.stack[-size:]
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def push_name(self, module: Any, name: Any) -> None:
        # Two long texts of the memo, joined again and again, would fill the memory.
        is_name = type(module) is type(name) is str and len(module) + len(name) < MAX_NAME
        self.push(Inert(f'{module}.{name}' if is_name and (module + name).isprintable() else 'a name'))

    def reduce(self) -> None:
        function, arguments = self.top(2)
        if type(function) is not Inert or type(arguments) is not tuple:
            raise TypeError
        maker = self.makers.get(function.name)
        self.push(maker(arguments) if maker else Inert(function.name))

    def new_object(self, size: int) -> None:
        kind = self.top(size)[0]
        self.push(Inert(kind.name if type(kind) is Inert else 'an object'))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Inert:
            return
        if type(target) is not dict or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if _is_key(key) else Inert(f'a {type(key).__name__}')] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not Inert:
            if type(target) is not list:
                raise TypeError
            target.extend(items)

    def frozenset(self) -> None:
        self.above_mark()
        self.push(Inert('a frozenset'))


def _is_key(value: Any) -> bool:
    """Whether hashing and comparing a key takes no time, whatever the others are; all names of tensors are such."""
    if type(value) in (str, bytes):
        return len(value) <= MAX_NAME
    # The hash of nested tuples and of huge integers can take for ever, and many large integers can have one hash.
    return (type(value) is int and -(2**53) < value < 2**53) or value is None or type(value) in (float, bool)


_Operation = Callable[[_Reader], Any]

_OPERATIONS: dict[int, _Operation] = {
    0x80: lambda r: r.take(1),  # PROTO
    0x95: lambda r: r.take(8),  # FRAME
    ord('('): _Reader.mark,
    ord('0'): lambda r: r.stack.pop() if r.stack else r.above_mark(),  # POP
    ord('1'): _Reader.above_mark,  # POP_MARK
    ord('2'): lambda r: r.push(r.stack[-1]),  # DUP
    # Constants and numbers.
    ord('N'): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord('J'): lambda r: r.push(r.number('<i')),
    ord('K'): lambda r: r.push(r.number('<B')),
    ord('M'): lambda r: r.push(r.number('<H')),
    0x8A: lambda r: r.push(int.from_bytes(r.take(r.number('<B')), 'little', signed=True)),  # LONG1
    0x8B: lambda r: r.push(int.from_bytes(r.take(_size(r.number('<i'))), 'little', signed=True)),  # LONG4
    ord('G'): lambda r: r.push(r.number('>d')),
    # Texts and bytes.
    ord('X'): lambda r: r.push(r.take(r.number('<I')).decode('utf-8', 'surrogatepass')),
    0x8C: lambda r: r.push(r.take(r.number('<B')).decode('utf-8', 'surrogatepass')),
    0x8D: lambda r: r.push(r.take(r.number('<Q')).decode('utf-8', 'surrogatepass')),
    ord('U'): lambda r: r.push(r.take(r.number('<B')).decode('latin-1')),  # of Python 2
    ord('T'): lambda r: r.push(r.take(_size(r.number('<i'))).decode('latin-1')),
    ord('C'): lambda r: r.push(r.take(r.number('<B'))),
    ord('B'): lambda r: r.push(r.take(r.number('<I'))),
    0x8E: lambda r: r.push(r.take(r.number('<Q'))),
    0x96: lambda r: r.push(r.take(r.number('<Q'))),  # a bytearray
    # Containers.
    ord(')'): lambda r: r.push(()),
    0x85: lambda r: r.push(tuple(r.top(1))),
    0x86: lambda r: r.push(tuple(r.top(2))),
    0x87: lambda r: r.push(tuple(r.top(3))),
    ord('t'): lambda r: r.push(tuple(r.above_mark())),
    ord(']'): lambda r: r.push([]),
    ord('a'): lambda r: r.extend(r.top(1)),
    ord('e'): lambda r: r.extend(r.above_mark()),
    ord('}'): lambda r: r.push({}),
    ord('s'): lambda r: r.set_items(r.top(2)),
    ord('u'): lambda r: r.set_items(r.above_mark()),
    0x8F: lambda r: r.push(Inert('a set')),
    0x90: lambda r: r.extend(r.above_mark()),
    0x91: _Reader.frozenset,
    # The memo.
    ord('q'): lambda r: r.remember(r.number('<B')),
    ord('r'): lambda r: r.remember(r.number('<I')),
    0x94: lambda r: r.remember(len(r.memo)),
    ord('h'): lambda r: r.push(r.memo[r.number('<B')]),
    ord('j'): lambda r: r.push(r.memo[r.number('<I')]),
    # Names, which stay names.
    ord('c'): lambda r: r.push_name(r.line(), r.line()),
    0x93: lambda r: r.push_name(*r.top(2)),
    ord('R'): _Reader.reduce,
    0x81: lambda r: r.new_object(2),
    0x92: lambda r: r.new_object(3),
    ord('b'): lambda r: r.top(1),  # BUILD: attributes, which nothing here has
    ord('Q'): lambda r: r.push(r.persistent(r.stack.pop())),
}


def _size(value: int) -> int:
    if value < 0:
        raise ValueError('its pickle has a negative size')
    return value

"""Rules for values that come from a file: what each may be, said once, and one line for what it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be: in words, ``'an integer from 1 to 4'``, and as a test that never raises."""

    what: str
    accepts: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError with the name, the value and the rule, if ``value`` breaks it."""
        if not self.accepts(value):
            raise ValueError(f'{name}={shown(value)} must be {self.what}')


def integer(low: int, high: int) -> Rule:
    """An integer in ``[low, high]``; a boolean is none."""
    return Rule(f'an integer from {low} to {high}', lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Rule:
    """A finite integer or float in ``[low, high]``."""

    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and math.isfinite(value)

    return Rule(f'a number from {low:g} to {high:g}', accepts)


def one_of(*values: Any) -> Rule:
    """One of these texts or booleans."""
    return Rule(' or '.join(map(repr, values)), lambda value: type(value) in (str, bool) and value in values)


def text(length: int) -> Rule:
    """A text of at most so many characters."""

    def accepts(value: Any) -> bool:
        return type(value) is str and len(value) <= length and _is_unicode(value)

    return Rule(f'a text of at most {length} characters', accepts)


def _is_unicode(value: str) -> bool:
    """Whether a text can be written: JSON can hold half of a surrogate pair."""
    return not any('\ud800' <= character <= '\udfff' for character in value)


def sequence(rule: Rule, low: int, high: int) -> Rule:
    """A list or tuple of ``low`` to ``high`` values, each under ``rule``."""
    count = str(low) if low == high else f'{low} to {high}'

    def accepts(value: Any) -> bool:
        return type(value) in (list, tuple) and low <= len(value) <= high and all(map(rule.accepts, value))

    return Rule(f'a list of {count}, each {rule.what}', accepts)


def texts(count: int, length: int) -> Rule:
    """A list of at most so many texts, of at most so many characters together."""

    def accepts(value: Any) -> bool:
        return (
            type(value) in (list, tuple)
            and len(value) <= count
            and all(type(item) is str and _is_unicode(item) for item in value)
            and sum(map(len, value)) <= length
        )

    return Rule(f'a list of at most {count} texts, of {length} characters in all', accepts)


def table(needed: tuple[str, ...] = (), /, **rules: Rule) -> Rule:
    """A dict with these entries and no others, each under its rule, and none of ``needed`` missing."""

    def accepts(value: Any) -> bool:
        return (
            type(value) is dict
            and value.keys() <= rules.keys()
            and value.keys() >= set(needed)
            and all(rules[name].accepts(item) for name, item in value.items())
        )

    return Rule(f'a table of {", ".join(f"{name} ({rule.what})" for name, rule in rules.items())}', accepts)


def check_table(what: str, table: Any, rules: Mapping[str, Rule]) -> None:
    """Check that ``table`` is a dict of entries that have a rule, each keeping it.

    Raises:
        ValueError: naming the first entry that is unknown or breaks its rule.
    """
    if type(table) is not dict:
        raise ValueError(f'{what} is {shown(table)}, and must be a table')
    for name, value in table.items():
        if type(name) is not str or name not in rules:
            raise ValueError(f'{what} has an entry {shown(name)}; known are {", ".join(rules) or "none"}')
        rules[name].check(f'{what}: {name}', value)


@contextmanager
def naming(what: Any) -> Iterator[None]:
    """Put ``what``, such as a path, before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from None


def shown(value: Any) -> str:
    """A value for a message: a simple one by its text, cut to 60 characters, any other by its type alone."""
    # The text of a nested value can take for ever, and that of a huge integer raises.
    if type(value) is int and abs(value) >= 10**30:
        return 'an integer of more than 30 digits'
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    if type(value) is str:
        return repr(value if len(value) <= 60 else value[:57] + '...')
    return f'a {type(value).__name__}'

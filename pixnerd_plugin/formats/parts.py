"""Parts that a file describes: checked against what each part declares, and built without the registry's ``build``.

A stranger's file must not reach mmengine's registry, which imports whatever a ``type`` with a dot in it, or a
``_scope_``, names. Only classes that are registered here already can be built, from arguments that they declare.

A part declares itself by two attributes of its class: ``role``, what it is (``'sampler'``, ``'head'``), and
``stored``, a :class:`~.schema.Rule` for each argument that a file may hold. ``parts``, if it has them, says which of
its arguments are parts themselves, and of which role. A module of the user's own that declares none of these may be a
head, of plain arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from pixnerd_plugin.registry import MODELS

from .schema import Rule, check_table, number, sequence, shown, text

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_GIVEN = ('dim', 'patch_size', 'in_channels', 'operations', 'device', 'dtype')

_SIMPLE = (text(100), number(-(2.0**20), 2.0**20), Rule('', lambda value: type(value) is bool or value is None))
_SCALAR = Rule('a text, a number or a boolean', lambda value: any(rule.accepts(value) for rule in _SIMPLE))
# The longest are the times of a sampler.
_LIST = sequence(_SCALAR, 0, 1001)
PLAIN = Rule(f'{_SCALAR.what}, or a short list of them', lambda value: _SCALAR.accepts(value) or _LIST.accepts(value))


def _is_description(value: Any, depth: int) -> bool:
    return (
        type(value) is dict
        and len(value) <= 64
        and all(type(name) is str and len(name) <= 100 for name in value)
        and all(PLAIN.accepts(item) or (depth > 0 and _is_description(item, depth - 1)) for item in value.values())
    )


DESCRIPTION = Rule('a table of a type and plain arguments', lambda value: _is_description(value, 1))
"""What is worth looking at as a part, such as a backbone with its head; :func:`check_part` says more."""


class UnknownPart(ValueError):
    """A file names a part that is not registered."""


def describe_part(part: Any) -> dict[str, Any]:
    """The description of a part for a file: its ``type``, its attributes named in ``stored``, and its own parts."""
    own = {name: getattr(part, name) for name in part.stored}
    inner = {name: describe_part(getattr(part, name)) for name in getattr(part, 'parts', {})}
    return {'type': type(part).__name__, **own, **inner}


def is_known_part(description: Any, role: str) -> bool:
    """Whether ``description`` names a registered part of this role; its arguments are not looked at."""
    return type(description) is dict and _find(description.get('type'), role) is not None


def check_part(description: Any, role: str) -> None:
    """Check that a file's description is of a registered part of this role, with arguments that the part declares.

    Raises:
        ValueError: naming the type or the argument that is not.
    """
    part = _find(description.get('type') if type(description) is dict else None, role)
    if part is None:
        kind = description.get('type') if type(description) is dict else description
        raise UnknownPart(f'{role} {shown(kind)} is none of PixNerd; import the module that registers it first')
    inner = getattr(part, 'parts', {})
    for name in inner:
        if name in description:
            check_part(description[name], inner[name])
    own = {name: value for name, value in description.items() if name != 'type' and name not in inner}
    check_table(role, own, _rules(part))


def build_part(description: Any, role: str, **more: Any) -> Any:
    """Build what :func:`check_part` accepts, with ``more`` arguments that are not the file's.

    Raises:
        ValueError: if the description is refused, or the part refuses its arguments.
    """
    check_part(description, role)
    part = _find(description['type'], role)
    arguments = {name: value for name, value in description.items() if name != 'type'}
    for name, inner in getattr(part, 'parts', {}).items():
        if name in arguments:
            arguments[name] = build_part(arguments[name], inner)
    return part(**more, **arguments)


def _find(name: Any, role: str) -> Any:
    part = MODELS.module_dict.get(name) if type(name) is str else None
    if not isinstance(part, type):
        return None
    undeclared = 'head' if issubclass(part, nn.Module) and not _is_ours(part) else None
    return part if getattr(part, 'role', undeclared) == role else None


def _rules(part: type) -> Mapping[str, Rule]:
    if hasattr(part, 'stored'):
        return part.stored
    # What the network gives its head is not the file's to say.
    return {
        name: PLAIN
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.kind in _NAMED and name not in _GIVEN
    }


def _is_ours(part: type) -> bool:
    return part.__module__.split('.')[0] == __package__.split('.')[0]

"""What the pack calls of ComfyUI, read in its source, and the signatures that the newest host tried has for it."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name('signatures.json')
HOST = ('comfy', 'comfy_api', 'folder_paths', 'latent_preview', 'nodes')


class Call(NamedTuple):
    """A call of a host's function: its dotted name, where it stands, and what it is given."""

    name: str
    place: str
    positional: int
    keywords: tuple[str, ...]
    is_open: bool


def host_calls() -> Iterator[Call]:
    """Every call in ``comfy_nodes`` whose function is imported from ComfyUI."""
    for path in sorted((ROOT / 'comfy_nodes').rglob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        imported = dict(_imports(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := _dotted(node.func, imported)):
                keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
                is_open = len(keywords) < len(node.keywords) or any(isinstance(a, ast.Starred) for a in node.args)
                place = f'{path.relative_to(ROOT)}:{node.lineno}'
                yield Call(name, place, sum(not isinstance(a, ast.Starred) for a in node.args), keywords, is_open)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition('.')[0] in HOST:
                    yield alias.name.partition('.')[0], alias.name.partition('.')[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] in HOST and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f'{node.module}.{alias.name}'


def _dotted(node: ast.expr, imported: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return imported.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, imported)
        return base and f'{base}.{node.attr}'
    return None


def signature_of(name: str) -> list[list[Any]]:
    """The parameters of a host's function or class: name, kind, and whether there is a default."""
    parts = name.split('.')
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        break
    parameters = inspect.signature(found).parameters.values()
    return [[p.name, int(p.kind), p.default is not p.empty] for p in parameters]


def problem(call: Call, parameters: list[list[Any]]) -> str:
    """Why a call does not fit a signature, or an empty string."""
    kinds = inspect._ParameterKind
    signature = inspect.Signature(
        [
            inspect.Parameter(name, kinds(kind), default=None if has_default else inspect.Parameter.empty)
            for name, kind, has_default in parameters
        ]
    )
    bind = signature.bind_partial if call.is_open else signature.bind
    try:
        bind(*[None] * call.positional, **dict.fromkeys(call.keywords))
    except TypeError as error:
        return f'{call.place}: {call.name}: {error}'
    return ''


def known_signatures() -> dict[str, Any]:
    """``host``, the version they are of, and ``signatures`` by name."""
    return json.loads(FILE.read_text(encoding='utf-8'))

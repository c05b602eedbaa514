"""Parts of a user's own: modules that register them, imported because the user says so, never because a file does."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixnerd_plugin.formats.torch_file import open_torch

_MAX_CONFIG = 2**20


def import_parts(modules: Sequence[str]) -> None:
    """Import modules by their names, looked for on Python's path and then in the current folder.

    Raises:
        ValueError: if there is no such module, or it does not import; one line.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in modules:
        module = name.removesuffix('.py').replace('/', '.')
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f'{module}.'.startswith(f'{error.name}.'):
                raise ValueError(f'{name} does not import: {error}') from error
            raise ValueError(
                f'there is no module {name!r} on the Python path or in {os.getcwd()}; name its folder in PYTHONPATH'
            ) from None
        except (ImportError, SyntaxError) as error:
            raise ValueError(f'{name} does not import: {error}') from error


def modules_of(path: str | Path) -> list[str]:
    """The modules that the config in a training's checkpoint imports (``custom_imports``); nothing is run or imported.

    Empty if the file is no checkpoint of a training, or its config imports nothing besides PixNerd.
    """
    path = Path(path)
    if not path.is_file() or path.suffix == '.safetensors':
        return []
    content = open_torch(path)
    meta = content.get('meta') if type(content) is dict else None
    text = meta.get('cfg') if type(meta) is dict else None
    if type(text) is not str or len(text) > _MAX_CONFIG:
        return []
    try:
        return list(dict.fromkeys(_custom_imports(ast.parse(text))))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []  # not a config that mmengine wrote


def _custom_imports(tree: ast.Module) -> Iterator[str]:
    """Names of modules under ``imports`` of ``custom_imports = dict(imports=[...])``."""
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        if not any(isinstance(target, ast.Name) and target.id == 'custom_imports' for target in statement.targets):
            continue
        for keyword in statement.value.keywords:
            found = ast.literal_eval(keyword.value) if keyword.arg == 'imports' else []
            for name in [found] if isinstance(found, str) else found:
                parts = name.split('.') if isinstance(name, str) else ['']
                if all(part.isidentifier() for part in parts) and parts[0] != 'pixnerd_plugin':
                    yield name

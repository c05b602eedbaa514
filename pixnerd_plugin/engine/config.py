"""Reading config files, and preparing mmengine for them."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from pixnerd_plugin import datasets  # noqa: F401 (registers what configs name, or says which package is missing)

from .config_check import check_options, check_parts


def load_config(path: str | Path, options: Mapping[str, Any] | Sequence[str] = ()) -> Any:
    """Read a config file and merge ``options`` into it: dotted names to values, or strings such as ``'a.b=1'``.

    Raises:
        FileNotFoundError: if the file or one of its bases is missing.
        ValueError: if an option or an argument of a part is unknown; the message names the nearest known one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path} does not exist; the configs that come with PixNerd are in mm_configs/')
    config = Config.fromfile(path)
    given = dict(options) if isinstance(options, Mapping) else parse_options(options)
    check_options(config, given)
    if not isinstance(options, Mapping):
        given = {name: _whole(config, name, value) for name, value in given.items()}
    try:
        config.merge_from_dict(given)
    except (TypeError, KeyError) as error:
        raise ValueError(f'--cfg-options: {str(error.args[0]).splitlines()[0]}') from None
    check_parts(config, given)
    return config


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse the values of ``--cfg-options``, such as ``'model.backbone.depth=4'``, as mmengine does.

    A value with ``dict(...)`` or ``{...}``, which mmengine cannot read, is written as in a config.

    Raises:
        ValueError: if one is not KEY=VALUE, or its value cannot be read; the message names it.
    """
    if wrong := [text for text in texts if not text.partition('=')[0].strip() or '=' not in text]:
        raise ValueError(f'--cfg-options {wrong[0]}: not KEY=VALUE, such as model.backbone.depth=4')
    values: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition('=')
        if 'dict(' in value or '{' in value:
            try:
                values[name] = _literal(ast.parse(value.strip(), mode='eval').body)
            except (SyntaxError, ValueError, TypeError, RecursionError):
                raise ValueError(
                    f"--cfg-options {text}: write it as in a config, such as dict(type='A', b=1)"
                ) from None
            continue
        found = argparse.Namespace()
        try:
            DictAction(['--cfg-options'], 'options', nargs='+')(argparse.ArgumentParser(), found, [text])
        except (RecursionError, AssertionError):
            raise ValueError(f'--cfg-options {text}: its brackets or commas cannot be read') from None
        values |= found.options
    return values


def _literal(node: ast.expr) -> Any:
    """The value of an expression of constants, lists, tuples and dicts; a word without quotes is a text."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=entries) if all(entry.arg for entry in entries):
            return {str(entry.arg): _literal(entry.value) for entry in entries}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.List(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_literal(part) for part in parts)
        case ast.Name(id=word):
            return word
    return ast.literal_eval(node)


def _whole(config: Any, name: str, value: Any) -> Any:
    """An option's value; a part that it gives by its type replaces the one there, and does not mix with it."""
    if not isinstance(value, Mapping) or 'type' not in value:
        return value
    first, *rest = name.split('.')
    there = config.get(first)
    for step in rest:
        if not isinstance(there, Mapping):
            return value
        there = there.get(step)
    return dict(value, _delete_=True) if isinstance(there, Mapping) else value


def hide_broken_torchvision() -> None:
    """Treat a torchvision that fails to import as not installed.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its import raises RuntimeError, which would stop
    mmengine's Runner although nothing here needs torchvision.
    """
    if importlib.util.find_spec('torchvision') is None:
        return
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError, OSError, AttributeError):
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        sys.modules['torchvision'] = None  # type: ignore[assignment]

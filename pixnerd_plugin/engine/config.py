"""Reading config files, and preparing mmengine for them."""

from __future__ import annotations

import argparse
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
    try:
        config.merge_from_dict(given)
    except (TypeError, KeyError) as error:
        raise ValueError(f'--cfg-options: {str(error.args[0]).splitlines()[0]}') from None
    check_parts(config, given)
    return config


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse the values of ``--cfg-options``, such as ``'model.backbone.depth=4'``, as mmengine does.

    Raises:
        ValueError: if one is not KEY=VALUE; the message names it.
    """
    if wrong := [text for text in texts if not text.partition('=')[0].strip() or '=' not in text]:
        raise ValueError(f'--cfg-options {wrong[0]}: not KEY=VALUE, such as model.backbone.depth=4')
    found = argparse.Namespace()
    DictAction(['--cfg-options'], 'options', nargs='+')(argparse.ArgumentParser(), found, list(texts))
    return found.options if texts else {}


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

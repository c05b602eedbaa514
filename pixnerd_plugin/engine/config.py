"""Config files, and what must be put right before mmengine reads one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Any:
    """Read a config file and merge ``options`` (dotted names to values) into it.

    Raises:
        FileNotFoundError: if the file or one of its bases is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path} does not exist; the configs that come with PixNerd are in mm_configs/')
    config = Config.fromfile(path)
    config.merge_from_dict(dict(options or {}))
    return config


def hide_broken_torchvision() -> None:
    """Let a torchvision that fails to import count as absent.

    PyPI's is built for CUDA; beside a CPU build of torch its import raises RuntimeError, which would end mmengine's
    Runner although nothing here needs torchvision.
    """
    if importlib.util.find_spec('torchvision') is None:
        return
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError, OSError, AttributeError):
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        sys.modules['torchvision'] = None  # type: ignore[assignment]

"""The registries of PixNerd's parts: children of mmengine's, under the scope ``pixnerd``.

With mmengine installed, ``dict(type='pixnerd.PixNerdDiT')`` resolves from any project, and everything that mmengine,
mmcv or torch registered (optimisers, transforms, hooks) resolves from here. Without it, and inside ComfyUI, each name
is a small registry of our own, so that the network and the samplers import with torch alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# ComfyUI does not train: importing an mmengine installed beside it would only slow down its start. Nor does its pack,
# which is without the folder that trains, and whose tools run outside ComfyUI.
TRAINS = Path(__file__).with_name('engine').is_dir()
WITH_MMENGINE = TRAINS and find_spec('mmengine') is not None and 'comfy' not in sys.modules

SCOPE = 'pixnerd'


class _Registry:
    """The part of mmengine's ``Registry`` that the network needs, for hosts without mmengine."""

    def __init__(self, name: str):
        self.name = name
        self.module_dict: dict[str, Any] = {}

    def register_module(self) -> Callable[[type], type]:
        def register(cls: type) -> type:
            self.module_dict[cls.__name__] = cls
            return cls

        return register

    def get(self, key: str) -> Any:
        return self.module_dict.get(key.removeprefix(f'{SCOPE}.'))

    def build(self, cfg: dict[str, Any]) -> Any:
        """Call the part that ``type`` names (by name, or the class itself) with the rest of ``cfg``."""
        arguments = dict(cfg)
        kind = arguments.pop('type')
        part = self.get(kind) if isinstance(kind, str) else kind
        if part is None:
            raise KeyError(f'{kind} is not in the {self.name} registry; known: {", ".join(sorted(self.module_dict))}')
        return part(**arguments)


def _child(name: str) -> Any:
    if not WITH_MMENGINE:
        return _Registry(name.lower())
    from mmengine import registry

    parent = getattr(registry, name)
    return registry.Registry(parent.name, parent=parent, scope=SCOPE, locations=['pixnerd_plugin'])


MODELS = _child('MODELS')
DATASETS = _child('DATASETS')
DATA_SAMPLERS = _child('DATA_SAMPLERS')
TRANSFORMS = _child('TRANSFORMS')
HOOKS = _child('HOOKS')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS')
LOOPS = _child('LOOPS')
METRICS = _child('METRICS')
LOG_PROCESSORS = _child('LOG_PROCESSORS')


def build(registry: Any, part: Any, **extra: Any) -> Any:
    """Build ``part`` if it is a dict, with ``extra`` arguments added; return it unchanged if it is built already.

    Entries of the dict win over ``extra``, so a config can override what the parent part would fill in.
    """
    return registry.build({**extra, **part}) if isinstance(part, dict) else part

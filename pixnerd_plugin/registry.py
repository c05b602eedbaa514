"""The registries of PixNerd's parts: children of mmengine's, under the scope ``pixnerd``.

With mmengine installed, ``dict(type='pixnerd.PixNerdDiT')`` resolves from any project, and everything mmengine, mmcv or
torch registered (optimisers, transforms, hooks) resolves from here. Without it (inside ComfyUI) the same names are small
registries of their own, so that the network and the samplers import with torch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from mmengine import registry as _mmengine
except ImportError:
    _mmengine = None

SCOPE = 'pixnerd'


class _Registry:
    """What the network needs of mmengine's ``Registry``, for hosts that do not have mmengine."""

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
        """Call the part named by ``type`` (its name or the class itself) with the rest of ``cfg``."""
        arguments = dict(cfg)
        kind = arguments.pop('type')
        part = self.get(kind) if isinstance(kind, str) else kind
        if part is None:
            raise KeyError(f'{kind} is not in the {self.name} registry; known: {", ".join(sorted(self.module_dict))}')
        return part(**arguments)


def _child(name: str) -> Any:
    if _mmengine is None:
        return _Registry(name.lower())
    parent = getattr(_mmengine, name)
    return _mmengine.Registry(parent.name, parent=parent, scope=SCOPE, locations=['pixnerd_plugin'])


MODELS = _child('MODELS')
DATASETS = _child('DATASETS')
DATA_SAMPLERS = _child('DATA_SAMPLERS')
TRANSFORMS = _child('TRANSFORMS')
HOOKS = _child('HOOKS')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS')
METRICS = _child('METRICS')
LOOPS = _child('LOOPS')


def build(registry: Any, part: Any, **extra: Any) -> Any:
    """Return ``part`` as it is when already built, else build its dict with ``extra`` arguments added.

    Entries of the dict win over ``extra``, so a config can always override what its parent would fill in.
    """
    return registry.build({**extra, **part}) if isinstance(part, dict) else part

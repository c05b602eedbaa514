"""Stand-ins for ComfyUI's modules, enough to import the nodes and read their schemas where there is no ComfyUI."""

import sys
from types import ModuleType

from ..comfy_host.host import host_is_at_hand, import_host

MODULES = (
    'comfy.conds',
    'comfy.ldm.modules.attention',
    'comfy.latent_formats',
    'comfy.model_base',
    'comfy.model_detection',
    'comfy.model_management',
    'comfy.model_sampling',
    'comfy.patcher_extension',
    'comfy.sample',
    'comfy.samplers',
    'comfy.sd',
    'comfy.sd1_clip',
    'comfy.supported_models',
    'comfy.supported_models_base',
    'comfy.text_encoders.llama',
    'comfy.utils',
    'comfy_api.latest',
    'folder_paths',
    'latent_preview',
)


class Anything(type):
    """A class with any class attribute."""

    def __getattr__(cls, name):
        return name


class StandIn(ModuleType):
    """A module in which every name is a class to inherit from."""

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return Anything(name, (), {})


class Part:
    """An input or output of a schema."""

    def __init__(self, id=None, **fields):
        self.id = id
        self.fields = fields
        self.extra_dict = {}


class Kind:
    Input = Output = Part


class Schema:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Io:
    Schema = Schema
    ComfyNode = object
    NodeOutput = tuple

    def __getattr__(self, name):
        return Kind


def install():
    for name in MODULES:
        parts = name.split('.')
        for length in range(1, len(parts) + 1):
            part = '.'.join(parts[:length])
            if part not in sys.modules:
                sys.modules[part] = StandIn(part)
                if length > 1:
                    setattr(sys.modules['.'.join(parts[: length - 1])], parts[length - 1], sys.modules[part])
    sys.modules['comfy_api.latest'].io = Io()
    sys.modules['folder_paths'].get_filename_list = lambda folder: []


# pixnerd_plugin asks whether ComfyUI is there, and must find mmengine's registries in the other tests.
import pixnerd_plugin  # noqa: E402, F401

if host_is_at_hand():
    import_host()
    # Its schemas are not these; tests/comfy_host reads them.
    collect_ignore = ['test_schemas.py']
else:
    install()

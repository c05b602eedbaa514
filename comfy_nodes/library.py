"""Makes ``pixnerd_plugin`` importable under its one absolute name.

ComfyUI loads a pack under a name made of its path. The library must not be imported under such a name beside its own,
or every part would be registered twice; and putting the pack's folder on ``sys.path`` would offer its ``tests`` and
``tools`` to every other pack. So the package beside this one is loaded by its location.
"""

import importlib.util
import sys
from pathlib import Path

NAME = 'pixnerd_plugin'

if NAME not in sys.modules:
    folder = Path(__file__).resolve().parent.parent / NAME
    spec = importlib.util.spec_from_file_location(NAME, folder / '__init__.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise

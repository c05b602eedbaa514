import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(code):
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_inside_comfyui_nothing_slow_is_imported():
    run(
        """
import sys, types
sys.modules['comfy'] = types.ModuleType('comfy')
import pixnerd_plugin
from pixnerd_plugin.registry import MODELS
assert MODELS.get('PixNerdDiT') is not None
slow = {'mmengine', 'mmcv', 'cv2', 'transformers', 'matplotlib', 'PIL'} & set(sys.modules)
assert not slow, slow
"""
    )


def test_the_root_is_harmless_to_plain_python():
    run(
        """
import importlib.util, sys
spec = importlib.util.spec_from_file_location('a.path/like.name', '__init__.py')
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not hasattr(module, 'comfy_entrypoint')
assert 'pixnerd_plugin' not in sys.modules
"""
    )


def test_the_core_is_found_by_its_location_and_imported_once():
    run(
        """
import sys
sys.path = [path for path in sys.path if path not in ('', '.')]
import importlib.util
spec = importlib.util.spec_from_file_location('somewhere.library', 'comfy_nodes/library.py')
spec.loader.exec_module(importlib.util.module_from_spec(spec))
first = sys.modules['pixnerd_plugin']
spec.loader.exec_module(importlib.util.module_from_spec(spec))
assert sys.modules['pixnerd_plugin'] is first
"""
    )


def test_pytest_may_import_the_folder_as_no_package():
    # As it does where the folder's name has a dot, pixnerd-0.1; the stand-ins make it look like ComfyUI.
    spec = importlib.util.spec_from_file_location('__init__', Path(__file__).parents[2] / '__init__.py')
    module = importlib.util.module_from_spec(spec)
    assert module.__package__ == ''
    assert 'comfy_api' in sys.modules
    spec.loader.exec_module(module)
    assert not hasattr(module, 'comfy_entrypoint')

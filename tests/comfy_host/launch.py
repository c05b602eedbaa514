"""Runs ComfyUI's ``main.py`` (its path and arguments follow) beside a CPU build of torch.

PyPI's torchvision is built for CUDA; beside a CPU torch its import fails for want of two operators, and ComfyUI imports
it. Nothing here ever calls them.
"""

import runpy
import sys
from pathlib import Path

import torch


def make_torchvision_importable() -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        make_torchvision_importable.library = library


if __name__ == '__main__':
    make_torchvision_importable()
    main = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(main.parent))
    runpy.run_path(str(main), run_name='__main__')

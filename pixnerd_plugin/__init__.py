"""PixNerd: pixel-space diffusion with a patch-wise neural field head, for mmengine and ComfyUI.

Importing the package registers every part. The network, the samplers and the checkpoint readers need torch alone;
datasets, hooks and the mmengine model register when mmengine is installed.
"""

from importlib.util import find_spec

from . import models, sampling
from .checkpoints import load_backbone

if find_spec('mmengine') is not None:
    from . import training  # noqa: F401

__all__ = ['load_backbone', 'models', 'sampling']

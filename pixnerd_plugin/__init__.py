"""PixNerd: pixel-space diffusion with a patch-wise neural field head, for mmengine and ComfyUI.

Importing the package registers every part. The network, the samplers and the checkpoint readers need torch alone;
datasets, hooks and the mmengine model register when mmengine is installed.
"""

from . import models, sampling
from .checkpoints import load_backbone
from .registry import WITH_MMENGINE

if WITH_MMENGINE:
    from . import training  # noqa: F401

__all__ = ['load_backbone', 'models', 'sampling']

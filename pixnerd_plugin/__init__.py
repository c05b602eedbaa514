"""PixNerd: pixel-space diffusion with a patch-wise neural field head, for mmengine and ComfyUI.

Importing the package registers every part. The network, the samplers and the checkpoint readers need torch alone; the
training parts register only if mmengine and Pillow are installed.
"""

from importlib.util import find_spec

from . import autoguidance, models, sampling
from .checkpoints import load_backbone
from .pipeline import Pipeline, load_pipeline
from .registry import WITH_MMENGINE

if WITH_MMENGINE and find_spec('PIL'):
    from . import datasets, engine, evaluation  # noqa: F401

__all__ = ['Pipeline', 'autoguidance', 'load_backbone', 'load_pipeline', 'models', 'sampling']

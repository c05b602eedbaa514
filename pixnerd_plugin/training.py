"""Everything that needs mmengine: importing this registers it, and completes the scope ``pixnerd`` for a Runner."""

import sys

if 'transformers' not in sys.modules:
    # To register one optimiser, mmengine imports all of transformers, which is half the time a training takes to start.
    # torch has that one too (TorchAdafactor).
    sys.modules['transformers'] = None  # type: ignore[assignment]
    try:
        import mmengine.optim
    finally:
        del sys.modules['transformers']

from mmengine import registry as mmengine

from . import datasets, evaluation, hooks, log_processor, loops, optim
from .models import algorithm
from .registry import SCOPE

__all__ = ['algorithm', 'datasets', 'evaluation', 'hooks', 'log_processor', 'loops', 'optim']

# A Runner looks in these too. Nothing of ours is in them, but mmengine warns about each that has no child in its scope.
for _parent in (
    mmengine.EVALUATOR,
    mmengine.FUNCTIONS,
    mmengine.MODEL_WRAPPERS,
    mmengine.OPTIMIZERS,
    mmengine.PARAM_SCHEDULERS,
    mmengine.RUNNERS,
    mmengine.VISBACKENDS,
    mmengine.VISUALIZERS,
):
    if SCOPE not in _parent.children:
        mmengine.Registry(_parent.name, parent=_parent, scope=SCOPE)

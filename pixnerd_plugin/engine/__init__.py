"""What mmengine's Runner needs of PixNerd: the model, the loop, optimiser wrappers, hooks and logs."""

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

from pixnerd_plugin.registry import SCOPE

from . import algorithm, hooks, log_processor, loops, optim

__all__ = ['algorithm', 'hooks', 'log_processor', 'loops', 'optim']

# A Runner looks in these too. Nothing of ours is in them, but mmengine warns about each that has no child in its scope.
for _parent in (
    mmengine.EVALUATOR,
    mmengine.FUNCTIONS,
    mmengine.METRICS,
    mmengine.MODEL_WRAPPERS,
    mmengine.OPTIMIZERS,
    mmengine.PARAM_SCHEDULERS,
    mmengine.RUNNERS,
    mmengine.VISBACKENDS,
    mmengine.VISUALIZERS,
):
    if SCOPE not in _parent.children:
        mmengine.Registry(_parent.name, parent=_parent, scope=SCOPE)

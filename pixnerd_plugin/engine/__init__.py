"""Training under mmengine's Runner: the model, the loop, optimiser wrappers, hooks and logs."""

import sys

if 'transformers' not in sys.modules:
    # mmengine imports all of transformers to register a single optimiser, which doubles the time a training takes to
    # start. torch has that optimiser too (TorchAdafactor).
    sys.modules['transformers'] = None  # type: ignore[assignment]
    try:
        import mmengine.optim
    finally:
        del sys.modules['transformers']

from mmengine import registry as mmengine

from pixnerd_plugin.registry import SCOPE

from . import algorithm, hooks, log_processor, loops, muon, optim, validation

__all__ = ['algorithm', 'hooks', 'log_processor', 'loops', 'muon', 'optim', 'validation']

# We register nothing in these, but the Runner looks in them, and warns about each that has no child in our scope.
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

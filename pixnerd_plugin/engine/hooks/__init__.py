from .best import BestCheckpointHook
from .checkpoint import AtomicCheckpointHook
from .ema import EMAHook
from .power_ema import PowerEMAHook
from .provenance import ProvenanceHook
from .sample_grid import SampleGridHook
from .scalars import ScalarsHook
from .timer import StepTimerHook

__all__ = [
    'AtomicCheckpointHook',
    'BestCheckpointHook',
    'EMAHook',
    'PowerEMAHook',
    'ProvenanceHook',
    'SampleGridHook',
    'ScalarsHook',
    'StepTimerHook',
]

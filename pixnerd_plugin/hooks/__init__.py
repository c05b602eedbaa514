from .checkpoint import AtomicCheckpointHook
from .ema import EMAHook
from .sample_grid import SampleGridHook

__all__ = ['AtomicCheckpointHook', 'EMAHook', 'SampleGridHook']

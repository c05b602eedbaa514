from .checkpoint import AtomicCheckpointHook
from .ema import EMAHook
from .provenance import ProvenanceHook
from .sample_grid import SampleGridHook
from .scalars import ScalarsHook

__all__ = ['AtomicCheckpointHook', 'EMAHook', 'ProvenanceHook', 'SampleGridHook', 'ScalarsHook']

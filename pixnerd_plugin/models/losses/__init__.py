from .flow_match_repa import FlowMatchREPALoss
from .terms import FrequencyLoss, LossTerm

__all__ = ['FlowMatchREPALoss', 'FrequencyLoss', 'LossTerm']

from .flow_match_repa import FlowMatchREPALoss
from .mean_flow import MeanFlowLoss
from .terms import FrequencyLoss, LossTerm, PerceptualLoss

__all__ = ['FlowMatchREPALoss', 'FrequencyLoss', 'LossTerm', 'MeanFlowLoss', 'PerceptualLoss']

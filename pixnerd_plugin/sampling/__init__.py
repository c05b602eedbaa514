from .field import FieldTrajectory
from .mean_flow import MeanFlowSampler
from .samplers import AdamsFlowSampler, EulerFlowSampler, FlowSampler, HeunFlowSampler, Step

__all__ = [
    'AdamsFlowSampler',
    'EulerFlowSampler',
    'FieldTrajectory',
    'FlowSampler',
    'HeunFlowSampler',
    'MeanFlowSampler',
    'Step',
]

from .field import FieldTrajectory
from .guidance import AdaptiveProjectedGuidance, CFGZeroStar, ClassifierFreeGuidance, Guidance
from .mean_flow import MeanFlowSampler
from .samplers import AdamsFlowSampler, EulerFlowSampler, FlowSampler, HeunFlowSampler, Step

__all__ = [
    'AdamsFlowSampler',
    'AdaptiveProjectedGuidance',
    'CFGZeroStar',
    'ClassifierFreeGuidance',
    'EulerFlowSampler',
    'FieldTrajectory',
    'FlowSampler',
    'Guidance',
    'HeunFlowSampler',
    'MeanFlowSampler',
    'Step',
]

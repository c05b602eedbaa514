from .field import FieldTrajectory
from .samplers import AdamsFlowSampler, EulerFlowSampler, FlowSampler, HeunFlowSampler, Step

__all__ = ['AdamsFlowSampler', 'EulerFlowSampler', 'FieldTrajectory', 'FlowSampler', 'HeunFlowSampler', 'Step']

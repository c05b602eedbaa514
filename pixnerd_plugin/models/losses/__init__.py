from .flow_match_repa import FlowMatchREPALoss

__all__ = ['FlowMatchREPALoss']

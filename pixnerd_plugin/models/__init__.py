from . import backbones, conditioners, heads, losses, teachers

__all__ = ['backbones', 'conditioners', 'heads', 'losses', 'teachers']

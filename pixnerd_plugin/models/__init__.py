from . import backbones, heads

__all__ = ['backbones', 'heads']

from .frozen_backbone import FrozenBackbone
from .load import load_backbone, load_into, read_checkpoint

__all__ = ['FrozenBackbone', 'load_backbone', 'load_into', 'read_checkpoint']

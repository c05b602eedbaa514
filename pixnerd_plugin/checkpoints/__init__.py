from .load import load_backbone, load_into, read_checkpoint

__all__ = ['load_backbone', 'load_into', 'read_checkpoint']

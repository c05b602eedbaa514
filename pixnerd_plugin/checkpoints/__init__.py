from .load import load_backbone, read_checkpoint

__all__ = ['load_backbone', 'read_checkpoint']

from .dinov2 import DINOv2Teacher

__all__ = ['DINOv2Teacher']

from .base import Conditioner
from .label import LabelConditioner
from .qwen3 import Qwen3TextEncoder

__all__ = ['Conditioner', 'LabelConditioner', 'Qwen3TextEncoder']

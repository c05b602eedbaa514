from .base import Conditioner
from .label import LabelConditioner
from .qwen3 import Qwen3TextEncoder
from .stored_text import StoredTextEmbeddings

__all__ = ['Conditioner', 'LabelConditioner', 'Qwen3TextEncoder', 'StoredTextEmbeddings']

from .deco import DeCoHead
from .linear import LinearHead
from .neural_field import NeuralFieldHead

__all__ = ['DeCoHead', 'LinearHead', 'NeuralFieldHead']

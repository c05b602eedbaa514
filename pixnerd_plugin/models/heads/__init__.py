from .linear import LinearHead
from .neural_field import NeuralFieldHead

__all__ = ['LinearHead', 'NeuralFieldHead']

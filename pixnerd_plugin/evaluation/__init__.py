"""Measuring a model's samples; importing this registers the feature extractors."""

from .classifier import ClassifierFeatures, ClassifierTeacher
from .features import DINOv2Features, FeatureExtractor, Features
from .inception import InceptionFeatures

__all__ = [
    'ClassifierFeatures',
    'ClassifierTeacher',
    'DINOv2Features',
    'FeatureExtractor',
    'Features',
    'InceptionFeatures',
]

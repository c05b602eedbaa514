"""Measuring a model's samples; importing this registers the feature extractors and the metric of validation."""

from .classifier import ClassifierFeatures, ClassifierTeacher
from .features import DINOv2Features, FeatureExtractor, Features
from .inception import InceptionFeatures
from .validation import FrechetDistance

__all__ = [
    'ClassifierFeatures',
    'ClassifierTeacher',
    'DINOv2Features',
    'FeatureExtractor',
    'Features',
    'FrechetDistance',
    'InceptionFeatures',
]

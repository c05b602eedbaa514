"""Measuring what a model draws; importing this registers the feature extractors."""

from pixnerd_plugin.evaluation.classifier import ClassifierFeatures, ClassifierTeacher
from pixnerd_plugin.evaluation.features import DINOv2Features, FeatureExtractor, Features
from pixnerd_plugin.evaluation.inception import InceptionFeatures

__all__ = [
    'ClassifierFeatures',
    'ClassifierTeacher',
    'DINOv2Features',
    'FeatureExtractor',
    'Features',
    'InceptionFeatures',
]

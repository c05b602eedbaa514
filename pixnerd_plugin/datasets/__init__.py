"""Datasets, transforms and the sampler, registered with mmengine."""

from contextlib import suppress

from .base import ImageDataset
from .buckets import BucketBatchSampler, make_buckets
from .captioned_digits import CaptionedDigits
from .captions import CaptionedDataset
from .digits import DigitsDataset
from .faults import DamagedImage, TooManyDamaged
from .image_folder import CaptionFolder, ImageFolder
from .sampler import ResumableSampler
from .shards import ShardDataset
from .transforms import (
    ADMCenterCrop,
    LoadRGB,
    LoadTextEmbedding,
    PackInputs,
    RandomCaption,
    RandomCropResize,
    ResizeCenterCrop,
)

with suppress(ImportError):
    # Our transforms do not need mmcv. If it is installed, configs can use its transforms too.
    import mmcv.transforms  # noqa: F401

__all__ = [
    'ADMCenterCrop',
    'BucketBatchSampler',
    'CaptionFolder',
    'CaptionedDataset',
    'CaptionedDigits',
    'DamagedImage',
    'DigitsDataset',
    'ImageDataset',
    'ImageFolder',
    'LoadRGB',
    'LoadTextEmbedding',
    'PackInputs',
    'RandomCaption',
    'RandomCropResize',
    'ResizeCenterCrop',
    'ResumableSampler',
    'ShardDataset',
    'TooManyDamaged',
    'make_buckets',
]

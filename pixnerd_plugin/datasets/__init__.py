"""Datasets, transforms and the sampler, registered with mmengine."""

from pixnerd_plugin.datasets.base import PictureDataset
from pixnerd_plugin.datasets.captions import CaptionedDataset
from pixnerd_plugin.datasets.digits import DigitsDataset
from pixnerd_plugin.datasets.faults import DamagedPicture, TooManyDamaged
from pixnerd_plugin.datasets.image_folder import CaptionFolder, ImageFolder
from pixnerd_plugin.datasets.sampler import ResumableSampler
from pixnerd_plugin.datasets.shards import ShardDataset
from pixnerd_plugin.datasets.text_embeddings import LoadTextEmbedding
from pixnerd_plugin.datasets.transforms import (
    ADMCenterCrop,
    LoadRGB,
    PackInputs,
    RandomCaption,
    RandomCropResize,
    ResizeCenterCrop,
)

__all__ = [
    'ADMCenterCrop',
    'CaptionFolder',
    'CaptionedDataset',
    'DamagedPicture',
    'DigitsDataset',
    'ImageFolder',
    'LoadRGB',
    'LoadTextEmbedding',
    'PackInputs',
    'PictureDataset',
    'RandomCaption',
    'RandomCropResize',
    'ResizeCenterCrop',
    'ResumableSampler',
    'ShardDataset',
    'TooManyDamaged',
]

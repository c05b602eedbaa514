"""The nodes. Their ids are a promise to saved workflows and are never renamed."""

from .conditioning import PixNerdClassLabel, PixNerdTextEncode
from .decode import PixNerdDecode
from .loaders import PixNerdModelLoader, PixNerdTextEncoderLoader
from .sampling import PixNerdAdamsSolver, PixNerdGuidanceInterval, PixNerdSampler, PixNerdSigmas
from .size import PixNerdEmptyImage, PixNerdResolution

NODES = [
    PixNerdModelLoader,
    PixNerdTextEncoderLoader,
    PixNerdTextEncode,
    PixNerdClassLabel,
    PixNerdEmptyImage,
    PixNerdSampler,
    PixNerdAdamsSolver,
    PixNerdSigmas,
    PixNerdGuidanceInterval,
    PixNerdResolution,
    PixNerdDecode,
]

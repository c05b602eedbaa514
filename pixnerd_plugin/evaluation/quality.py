"""Image quality of samples against a reference: gather features from all processes, then compute the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_dist_info
from torch import Tensor

from .features import FeatureExtractor, Features
from .metrics import Statistics, frechet_distance, inception_score, precision_recall
from .npz import open_npz
from .pictures import ARRAY, Images, open_images

STATISTICS = ('mu', 'sigma', 'mu_s', 'sigma_s')

# Width of spatial statistics: 128 MiB of covariance. Inception's have 2023.
MAX_WIDTH = 2**12


@dataclass
class Reference:
    """What samples are compared with: pictures, ADM's statistics of a whole training set, or both."""

    where: str
    size: tuple[int, int]
    pictures: Images | None = None
    pool: Statistics | None = None
    spatial: Statistics | None = None
    features: Features | None = None
    """Features of ``pictures``, on rank 0."""
    is_prepared: bool = False


def open_reference(
    where: str, size: tuple[int, int], extractor: FeatureExtractor, center_crop: bool = False
) -> Reference:
    """Open a reference and check what can be checked without computing features.

    Args:
        where: a folder of pictures, ``'digits:test'``, or an npz as ADM's, with ``arr_0`` (pictures), with ``mu``,
            ``sigma``, ``mu_s`` and ``sigma_s`` (statistics of Inception's features), or both.
        size: height and width of the samples.
        extractor: the feature extractor.
        center_crop: crop a folder's pictures to ``size`` as ADM does.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged, too small, or of another size.
    """
    names: list[str] = []
    if Path(where).is_file():
        with open_npz(where) as archive:
            names = archive.names
    has_statistics = 'mu' in names
    if names and not has_statistics and ARRAY not in names:
        raise ValueError(
            f'{where} holds neither pictures (arr_0) nor statistics (mu, sigma), only {", ".join(names)[:200]}'
        )
    reference = Reference(where, size)
    if has_statistics:
        if extractor.name != 'Inception':
            raise ValueError(
                f'the statistics in {where} are of Inception features, and the feature extractor is {extractor.name}; '
                'give the reference as pictures'
            )
        reference.pool, reference.spatial = _read_statistics(where, extractor.dim)
    if not names or ARRAY in names:
        reference.pictures = open_images(where, size, center_crop)
        if reference.pool is None:
            require_enough(len(reference.pictures), extractor, f'reference {where}')
    return reference


def require_enough(number: int, extractor: FeatureExtractor, what: str) -> None:
    """Check, before anything is computed, that there are more pictures than the features have dimensions.

    Raises:
        ValueError: if there are fewer; the message names the minimum.
    """
    if number <= extractor.dim:
        raise ValueError(
            f'{what} has {number} pictures. With no more than {extractor.dim}, the width of the {extractor.name} '
            f'features, the covariance is singular and a Fréchet distance means nothing: give at least '
            f'{extractor.dim + 1} (papers use 50,000)'
        )


def prepare(
    reference: Reference, extractor: FeatureExtractor, batch_size: int = 64, device: torch.device | str = 'cpu'
) -> None:
    """Load the features' network and compute the reference's features, once, so that faults of either show early.

    Raises:
        ValueError: if weights or a picture cannot be read, a picture has another size, or the statistics another width.
    """
    if reference.is_prepared:
        return
    extractor.to(device)
    blank = extractor(torch.zeros(1, 3, *reference.size, dtype=torch.uint8))
    if reference.spatial is not None and blank.spatial is not None:
        width, found = blank.spatial.shape[1], reference.spatial.mean.shape[0]
        if width != found:
            raise ValueError(f'mu_s in {reference.where} is {found} wide, and the spatial features are {width}')
    if reference.pictures is not None:
        reference.features = extract(reference.pictures, extractor, batch_size)
    reference.is_prepared = True


def measure(
    samples: Images,
    reference: Reference,
    extractor: FeatureExtractor,
    batch_size: int = 64,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """Compute every metric that the features allow. With several processes, each computes a share of the features.

    Returns:
        On rank 0 ``FID`` (``Frechet distance`` if the features are not Inception's), ``sFID``, ``IS``, ``precision``,
        ``recall``, and ``accuracy`` if labels and classes are known; an empty dict on the other ranks.
    """
    require_enough(len(samples), extractor, f'samples {samples.where}')
    prepare(reference, extractor, batch_size, device)
    features = extract(samples, extractor, batch_size)
    if features is None:
        return {}
    results = compare(features, reference.features, extractor, reference, device)
    if extractor.num_classes is not None and samples.labels is not None and features.logits is not None:
        results['accuracy'] = (features.logits.argmax(1) == samples.labels).double().mean().item()
    return results


def compare(
    samples: Features,
    known: Features | None,
    extractor: FeatureExtractor,
    reference: Reference | None = None,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """Compare features with those of known pictures, or with the statistics in ``reference``."""
    results: dict[str, float] = {}
    pool = reference.pool if reference is not None else None
    spatial = reference.spatial if reference is not None else None
    if pool is None and known is not None:
        pool = Statistics.of(known.pool)
        spatial = None if known.spatial is None else Statistics.of(known.spatial)
    if pool is not None:
        name = 'FID' if extractor.name == 'Inception' else 'Frechet distance'
        results[name] = frechet_distance(Statistics.of(samples.pool), pool)
    if spatial is not None and samples.spatial is not None:
        results['sFID'] = frechet_distance(Statistics.of(samples.spatial), spatial)
    if samples.logits is not None:
        results['IS'] = inception_score(samples.logits)
    if known is not None:
        results['precision'], results['recall'] = precision_recall(samples.pool.to(device), known.pool.to(device))
    return results


@torch.no_grad()
def extract(pictures: Images, extractor: FeatureExtractor, batch_size: int = 64) -> Features | None:
    """Compute the features of all pictures, in order; each process computes a share, and rank 0 gets all of them.

    Raises:
        FloatingPointError: if a feature is not finite.
    """
    from tqdm import tqdm

    rank, world_size = get_dist_info()
    number = -(-len(pictures) // batch_size)
    own = range(number)[rank::world_size]
    parts: list[Features] = []
    batches = pictures.batches(batch_size, rank, world_size)
    bar = tqdm(batches, f'{extractor.name} of {pictures.where}', len(own), unit='batch', disable=None)
    for index, batch in zip(own, bar, strict=True):
        part = extractor(batch)
        if not all(_is_finite(values) for values in (part.pool, part.spatial, part.logits)):
            first = index * batch_size
            raise FloatingPointError(
                f'{extractor.name} gives NaN or infinity for one of the pictures {first} to {first + len(batch) - 1} '
                f'of {pictures.where}; are its weights complete?'
            )
        parts.append(part.cpu())
    gathered = all_gather_object(parts)
    if rank != 0:
        return None
    return Features.cat([gathered[index % world_size][index // world_size] for index in range(number)])


def _is_finite(values: Tensor | None) -> bool:
    return values is None or bool(values.isfinite().all())


def _read_statistics(path: str, dim: int) -> tuple[Statistics, Statistics | None]:
    with open_npz(path) as archive:
        headers = {name: archive.header(name) for name in STATISTICS if name in archive.names}
        shapes = {name: header.shape for name, header in headers.items()}
        if shapes.get('mu') != (dim,) or shapes.get('sigma') != (dim, dim):
            raise ValueError(f'{path} needs mu ({dim},) and sigma ({dim}, {dim}), and has {shapes}')
        if 'mu_s' not in shapes or 'sigma_s' not in shapes:
            headers = {name: headers[name] for name in ('mu', 'sigma')}
        elif len(shapes['mu_s']) != 1 or shapes['sigma_s'] != shapes['mu_s'] * 2:
            raise ValueError(
                f'{path} has mu_s {shapes["mu_s"]} and sigma_s {shapes["sigma_s"]}, which do not fit together'
            )
        elif shapes['mu_s'][0] > MAX_WIDTH:
            raise ValueError(f'mu_s in {path} is {shapes["mu_s"][0]} wide, more than {MAX_WIDTH}')
        found: dict[str, Tensor] = {}
        for name, header in headers.items():
            if header.dtype not in ('<f4', '<f8'):
                raise ValueError(f'{name} in {path} is {np.dtype(header.dtype)}, and float32 or float64 is needed')
            found[name] = torch.from_numpy(archive.read(name).astype(np.float64))
            if not found[name].isfinite().all():
                raise ValueError(f'{name} in {path} holds NaN or infinity')
    spatial = Statistics(found['mu_s'], found['sigma_s']) if 'mu_s' in found else None
    return Statistics(found['mu'], found['sigma']), spatial

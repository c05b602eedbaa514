"""Pictures to measure, read in batches from a folder, ADM's npz, or scikit-learn's digits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pixnerd_plugin.datasets.faults import DamagedImage
from pixnerd_plugin.datasets.image_folder import checked_folder, list_images

from .npz import Header, open_npz

ARRAY = 'arr_0'

# Maximum side of pictures in an npz, in pixels, so that a batch of an untrusted file fits into memory.
MAX_SIDE = 4096


class Images(ABC):
    """A list of pictures of one size.

    ``where`` names their place in messages, ``size`` is (height, width), and ``labels`` are class numbers, if known.
    """

    where: str
    size: tuple[int, int]
    labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """Yield uint8 ``(B, 3, H, W)``: every ``world_size``-th batch, starting with batch ``rank``."""

    def subset(self, indices: Sequence[int]) -> TensorImages:
        """Read chosen pictures into memory, in the given order."""
        raise NotImplementedError(f'{type(self).__name__} reads its pictures in order only')


class FolderImages(Images):
    """The picture files below a folder, in a fixed order; sub-folders are the classes.

    Args:
        folder: the folder.
        crop: crop every picture to this (height, width), a square, as ADM does. Without it all must have the same size.
    """

    def __init__(self, folder: str | Path, crop: tuple[int, int] | None = None):
        self.where = str(folder)
        root = checked_folder(folder, 'a folder of pictures')
        self.paths = list_images(root)
        if not self.paths:
            raise ValueError(f'no pictures below {folder}')
        if crop is not None and crop[0] != crop[1]:
            raise ValueError(f'ADM crops squares, and the pictures to compare with are {crop[0]}x{crop[1]}')
        self.crop = crop
        self.size = crop or self._read(self.paths[0]).shape[:2]
        if max(self.size) > MAX_SIDE:
            raise ValueError(f'{self.paths[0]} is {self.size[0]}x{self.size[1]}, more than {MAX_SIDE} pixels on a side')
        classes = [Path(path).relative_to(root).parts[0] for path in self.paths]
        if all(Path(root, name).is_dir() for name in set(classes)):
            numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
            self.labels = torch.tensor([numbers[name] for name in classes])

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        for start in range(rank * batch_size, len(self), world_size * batch_size):
            images = []
            for path in self.paths[start : start + batch_size]:
                image = self._read(path)
                if image.shape[:2] != tuple(self.size):
                    raise ValueError(
                        f'{path} is {image.shape[0]}x{image.shape[1]} and the pictures before it are '
                        f'{self.size[0]}x{self.size[1]}; --center-crop cuts them to one size as ADM does'
                    )
                images.append(image)
            yield to_tensor(np.stack(images))

    def subset(self, indices: Sequence[int]) -> TensorImages:
        images = to_tensor(np.stack([self._read(self.paths[index]) for index in indices]))
        labels = None if self.labels is None else self.labels[list(indices)]
        return TensorImages(self.where, images, labels)

    def _read(self, path: str) -> np.ndarray:
        from pixnerd_plugin.datasets.decode import decode_image
        from pixnerd_plugin.datasets.transforms import adm_center_crop

        try:
            picture = decode_image(path)
            if self.crop is not None:
                picture = adm_center_crop(picture, self.crop[0])
        except DamagedImage as error:
            raise ValueError(f'{path} cannot be read as a picture: {error}') from None
        return np.array(picture)


class NpzImages(Images):
    """``arr_0`` of an npz as ADM writes it, uint8 ``(N, H, W, 3)``; never held in memory as a whole.

    Args:
        path: the npz.
        num: use only this many pictures, from the first.
    """

    def __init__(self, path: str | Path, num: int | None = None):
        self.where = str(path)
        with open_array(path) as (_, shape):
            self.num = shape[0] if num is None else min(num, shape[0])
            self.size = shape[1:3]

    def __len__(self) -> int:
        return self.num

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        with open_array(self.where) as (stream, shape):
            picture = int(np.prod(shape[1:]))
            for number, start in enumerate(range(0, len(self), batch_size)):
                count = min(batch_size, len(self) - start)
                data = stream.read(count * picture)
                if len(data) < count * picture:
                    raise ValueError(f'{self.where} ends at picture {start} of {len(self)}; make it again')
                if number % world_size == rank:
                    yield to_tensor(np.frombuffer(data, np.uint8).reshape(count, *shape[1:]))


class TensorImages(Images):
    """Pictures in memory, uint8 ``(N, 3, H, W)``."""

    def __init__(self, where: str, images: Tensor, labels: Tensor | None = None):
        self.where, self.images, self.labels = where, images, labels
        self.size = (images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        return iter(self.images.split(batch_size)[rank::world_size])

    def subset(self, indices: Sequence[int]) -> TensorImages:
        labels = None if self.labels is None else self.labels[list(indices)]
        return TensorImages(self.where, self.images[list(indices)], labels)


def digit_images(split: str, size: tuple[int, int]) -> TensorImages:
    """A split, ``'train'`` or ``'test'``, of scikit-learn's digits drawn at ``size``."""
    from pixnerd_plugin.datasets import DigitsDataset

    dataset = DigitsDataset(size=size[0], split=split)
    digits = [dataset[index] for index in range(len(dataset))]
    images = to_tensor(np.stack([digit['img'] for digit in digits]))
    return TensorImages(f'digits:{split}', images, torch.tensor([digit['label'] for digit in digits]))


def open_images(where: str | Path, size: tuple[int, int] | None = None, center_crop: bool = False) -> Images:
    """Open a folder, an npz, ``'digits:train'`` or ``'digits:test'``.

    Args:
        where: what to open.
        size: height and width that the pictures must have; digits are drawn at this size (32x32 by default).
        center_crop: crop a folder's pictures to ``size`` as ADM does.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not readable, or has another size.
    """
    if str(where).startswith('digits:'):
        return digit_images(str(where).removeprefix('digits:'), size or (32, 32))
    if Path(where).is_dir():
        pictures: Images = FolderImages(where, size if center_crop else None)
    elif Path(where).is_file():
        pictures = NpzImages(where)
    else:
        raise FileNotFoundError(f"{where} is neither a folder of pictures nor an npz, nor 'digits:test'")
    if size is not None and tuple(pictures.size) != tuple(size):
        hint = '; --center-crop cuts them as ADM does' if Path(where).is_dir() else ''
        raise ValueError(
            f'the pictures of {where} are {pictures.size[0]}x{pictures.size[1]}, and those to compare them with '
            f'{size[0]}x{size[1]}{hint}'
        )
    return pictures


def load_all(pictures: Images) -> tuple[Tensor, Tensor]:
    """Read all pictures as uint8 ``(N, 3, H, W)``, and their labels ``(N,)``.

    Raises:
        ValueError: if their classes are unknown.
    """
    if pictures.labels is None:
        raise ValueError(f'{pictures.where}: the classes are not known; expected one sub-folder a class')
    return torch.cat(list(pictures.batches(1000))), pictures.labels


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 ``(B, H, W, 3)`` to a tensor ``(B, 3, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@contextmanager
def open_array(path: str | Path) -> Iterator[tuple[IO[bytes], tuple[int, int, int, int]]]:
    """Open ``arr_0`` of an npz for reading; gives the stream and its shape ``(N, height, width, 3)``.

    Raises:
        ValueError: if it is absent or not an array of pictures, or, while it is read, if it is damaged.
    """
    with open_npz(path) as archive:
        if ARRAY not in archive.names:
            raise ValueError(f'{path} holds no pictures ({ARRAY}), only {", ".join(archive.names)[:200]}')
        with archive.open(ARRAY) as (stream, header):
            yield stream, image_shape(header, f'{ARRAY} in {path}')


def image_shape(header: Header, where: str) -> tuple[int, int, int, int]:
    """The shape of an array of pictures.

    Raises:
        ValueError: if it is not an array of pictures.
    """
    shape = header.shape
    if header.dtype != '|u1' or len(shape) != 4 or shape[3] != 3 or header.fortran_order or 0 in shape:
        raise ValueError(f'{where} is {np.dtype(header.dtype)} {shape}, and uint8 (N, height, width, 3) is needed')
    if max(shape[1:3]) > MAX_SIDE:
        raise ValueError(f'{where} has pictures of {shape[1]}x{shape[2]}, more than {MAX_SIDE} pixels on a side')
    return shape[0], shape[1], shape[2], 3

"""Datasets from folders of picture files: one folder per class, or captions beside the pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmengine.logging import print_log

from pixnerd_plugin.registry import DATASETS

from .base import ImageDataset, digest
from .captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, CaptionedDataset

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')


def list_files(folder: str) -> Iterator[str]:
    """Yield the files below a folder in a fixed order, except hidden ones and links to folders."""
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith('.')), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_file():
            yield entry.path
        elif entry.is_dir(follow_symlinks=False):
            yield from list_files(entry.path)


def list_images(folder: str) -> list[str]:
    """List the picture files below a folder in a fixed order."""
    return [path for path in list_files(folder) if path.lower().endswith(IMAGE_SUFFIXES)]


def checked_folder(data_root: str | os.PathLike[str], expected: str) -> str:
    """Return `data_root` with ``~`` expanded.

    Raises:
        FileNotFoundError: if it is not a folder; the message says what was `expected` in it.
    """
    folder = os.path.normpath(os.path.expanduser(os.fspath(data_root)))
    if not os.path.isdir(folder):
        kind = 'is not a folder' if os.path.exists(folder) else 'does not exist'
        raise FileNotFoundError(f'data_root {folder!r} {kind}; expected {expected}')
    return folder


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """Pictures in one folder per class, as in ImageNet: ``data_root/n01440764/*.JPEG``.

    Labels number the class folders in sorted order. ``metainfo['classes']`` names them, by default by their folders.
    Samples are ``dict(img_path, label)``.

    Args:
        data_root: the folder of class folders.
        kwargs: `ImageDataset`'s arguments, `pipeline` and `max_damaged` among them.
    """

    EXPECTED = f'one sub-folder per class, with pictures ({", ".join(IMAGE_SUFFIXES)}) in each'

    def __init__(self, data_root: str, **kwargs: Any):
        super().__init__(data_root=checked_folder(data_root, self.EXPECTED), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        with os.scandir(self.data_root) as entries:
            folders = sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(('.', '__'))
            )
        # In threads, because listing a network file system is mostly waiting.
        with ThreadPoolExecutor(max_workers=16) as pool:
            pictures = list(pool.map(lambda name: list_images(os.path.join(self.data_root, name)), folders))
        if not any(pictures):
            raise ValueError(
                f'no pictures in the sub-folders of data_root {self.data_root!r}; expected {self.EXPECTED}'
            )
        empty = [name for name, paths in zip(folders, pictures, strict=True) if not paths]
        if empty:
            print_log(f'{self.data_root}: class folders without pictures: {", ".join(empty)}', logger='current')
        names = self._metainfo.setdefault('classes', tuple(folders))
        if len(names) != len(folders):
            raise ValueError(f'metainfo names {len(names)} classes, but {self.data_root!r} has {len(folders)} folders')
        self.fingerprint = digest(path[len(self.data_root) :] for paths in pictures for path in paths)
        return [dict(img_path=path, label=label) for label, paths in enumerate(pictures) for path in paths]


@DATASETS.register_module()
class CaptionFolder(CaptionedDataset):
    """Pictures anywhere below a folder, each with a caption file of the same stem beside it.

    ``cat.txt`` has one caption per line; ``cat.json`` has a string or a list of strings in the field `caption_key`. If
    both exist, the `.txt` is used. Samples are ``dict(img_path, caption_path, captions, text)``.

    Args:
        data_root: the folder.
        kwargs: `CaptionedDataset`'s arguments, `pipeline`, `max_damaged` and `caption_key` among them.
    """

    EXPECTED = f'pictures ({", ".join(IMAGE_SUFFIXES)}) with a .txt or .json caption beside each'

    def __init__(self, data_root: str, **kwargs: Any):
        super().__init__(data_root=checked_folder(data_root, self.EXPECTED), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        files = list(list_files(self.data_root))
        captions = {path for path in files if path.endswith(CAPTION_SUFFIXES)}

        def beside(path: str) -> str | None:
            names = (os.path.splitext(path)[0] + suffix for suffix in CAPTION_SUFFIXES)
            return next((name for name in names if name in captions), None)

        found = {path: beside(path) for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
        if not any(found.values()):
            raise ValueError(f'no captioned pictures in data_root {self.data_root!r}; expected {self.EXPECTED}')
        missing = sum(caption is None for caption in found.values())
        print_log(f'{self.data_root}: {len(found)} pictures, {missing} without a caption', logger='current')
        self.fingerprint = digest(path[len(self.data_root) :] for path in found)
        return [dict(img_path=path, caption_path=caption) for path, caption in found.items()]

    def captions(self, index: int) -> list[str]:
        """The captions of a picture, the same as in its sample."""
        return self.get_data_info(index)['captions']

    def get_data_info(self, idx: int) -> dict[str, Any]:
        info = super().get_data_info(idx)
        return self.with_captions(info, lambda: _read_caption(info['caption_path']))


def _read_caption(path: str | None) -> tuple[bytes, str]:
    if path is None:
        raise ValueError('no .txt or .json beside it')
    with open(path, 'rb') as file:
        return file.read(MAX_CAPTION_BYTES + 1), os.path.splitext(path)[1]

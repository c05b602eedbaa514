"""Datasets from folders of picture files: one folder per class, or captions beside the pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmengine.logging import print_log

from pixnerd_plugin.registry import DATASETS

from .base import ImageDataset, digest
from .captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, CaptionedDataset
from .decode import IMAGE_SUFFIXES, missing_decoder, readable_suffixes
from .faults import Skipped


def list_files(folder: str, skipped: Skipped | None = None) -> Iterator[str]:
    """Yield the files below a folder in a fixed order, except hidden ones: its own, then those behind links to folders.

    Each folder is listed once, however many links lead to it; so links may lead round in circles. Links that are not
    followed, because they are broken or their folder is listed already, are added to `skipped`.
    """
    skipped = Skipped() if skipped is None else skipped
    listed: set[tuple[int, int]] = set()
    links = [folder]
    while links:
        link = links.pop(0)
        if _identity(link) in listed:
            skipped.add('link to a folder listed already', link)
        else:
            yield from _walk(link, listed, links, skipped)


def _walk(folder: str, listed: set[tuple[int, int]], links: list[str], skipped: Skipped) -> Iterator[str]:
    listed.add(_identity(folder))
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith('.')), key=lambda entry: entry.name)
    for entry in visible:
        if os.path.isfile(entry.path):  # entry.is_file() raises for a link to itself
            yield entry.path
        elif not os.path.isdir(entry.path):
            skipped.add('broken link or no file', entry.path)
        elif entry.is_symlink():
            links.append(entry.path)
        elif _identity(entry.path) not in listed:  # a link may have led into it
            yield from _walk(entry.path, listed, links, skipped)


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def list_images(folder: str, skipped: Skipped | None = None) -> list[str]:
    """List the pictures below a folder that can be decoded here, in a fixed order; `skipped` gets all other files."""
    pictures = []
    for path in list_files(folder, skipped):
        if path.lower().endswith(readable_suffixes()):
            pictures.append(path)
        elif skipped is not None:
            skip_file(path, skipped)
    return pictures


def skip_file(path: str, skipped: Skipped) -> None:
    """Add a file that is not read to `skipped`, by its suffix and what would be needed to read it."""
    suffix = os.path.splitext(path)[1].lower()
    needed = missing_decoder(suffix)
    skipped.add(f'{suffix or "no suffix"}{f" (needs {needed})" if needed else ""}', path)


def log_skipped(folder: str, skipped: Skipped) -> None:
    if skipped:
        print_log(f'{folder}: not used: {skipped}', logger='current', level=logging.WARNING)


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


def class_folders(data_root: str | os.PathLike[str]) -> list[str]:
    """The names of the class folders in `data_root`, in the order of their labels.

    Raises:
        FileNotFoundError: if it is not a folder.
    """
    with os.scandir(checked_folder(data_root, 'one sub-folder per class')) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(('.', '__')))


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
        folders = class_folders(self.data_root)
        skipped = Skipped()
        with os.scandir(self.data_root) as entries:
            files = sorted(
                entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith(('.', '__'))
            )
        for name in files:
            skipped.add('file outside the class folders', os.path.join(self.data_root, name))
        # In threads, because listing a network file system is mostly waiting.
        with ThreadPoolExecutor(max_workers=16) as pool:
            pictures = list(pool.map(lambda name: list_images(os.path.join(self.data_root, name), skipped), folders))
        if not any(pictures):
            raise ValueError(
                f'no pictures in the sub-folders of data_root {self.data_root!r}; expected {self.EXPECTED}'
            )
        empty = [name for name, paths in zip(folders, pictures, strict=True) if not paths]
        if empty:
            print_log(f'{self.data_root}: class folders without pictures: {", ".join(empty)}', logger='current')
        log_skipped(self.data_root, skipped)
        names = self._metainfo.setdefault('classes', tuple(folders))
        if len(names) != len(folders):
            raise ValueError(f'metainfo names {len(names)} classes, but {self.data_root!r} has {len(folders)} folders')
        self.fingerprint = digest(path[len(self.data_root) :] for paths in pictures for path in paths)
        return [dict(img_path=path, label=label) for label, paths in enumerate(pictures) for path in paths]


@DATASETS.register_module()
class CaptionFolder(CaptionedDataset):
    """Pictures anywhere below a folder, each with a caption file of the same stem beside it.

    ``cat.txt`` or ``cat.caption`` has one caption per line; ``cat.json`` has a string or a list of strings in the field
    `caption_key`. If several exist, the `.txt` is used, then the `.json`. Capitals do not matter. Samples are
    ``dict(img_path, caption_path, captions, text)``.

    Args:
        data_root: the folder.
        kwargs: `CaptionedDataset`'s arguments, such as `pipeline`, `max_damaged` and `one_caption_per_file`.
    """

    EXPECTED = f'pictures ({", ".join(IMAGE_SUFFIXES)}) with a .txt, .json or .caption beside each'

    def __init__(self, data_root: str, **kwargs: Any):
        super().__init__(data_root=checked_folder(data_root, self.EXPECTED), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        skipped = Skipped()
        pictures, captions = [], []
        for path in list_files(self.data_root, skipped):
            if path.lower().endswith(readable_suffixes()):
                pictures.append(path)
            elif path.lower().endswith(CAPTION_SUFFIXES):
                captions.append(path)
            else:
                skip_file(path, skipped)
        found = pair_captions(pictures, captions)
        if not any(found.values()):
            also = f'; not used: {skipped}' if skipped else ''
            raise ValueError(f'no captioned pictures in data_root {self.data_root!r}; expected {self.EXPECTED}{also}')
        missing = sum(caption is None for caption in found.values())
        print_log(f'{self.data_root}: {len(found)} pictures, {missing} without a caption', logger='current')
        used = set(found.values())
        for caption in captions:
            if caption not in used:
                skipped.add('caption without a picture, or beside another caption', caption)
        log_skipped(self.data_root, skipped)
        self.fingerprint = digest(path[len(self.data_root) :] for path in found)
        return [dict(img_path=path, caption_path=caption) for path, caption in found.items()]

    def captions(self, index: int) -> list[str]:
        """The captions of a picture, the same as in its sample."""
        return self.get_data_info(index)['captions']

    def get_data_info(self, idx: int) -> dict[str, Any]:
        info = super().get_data_info(idx)
        return self.with_captions(info, lambda: read_caption(info['caption_path']))


def pair_captions(pictures: list[str], captions: list[str]) -> dict[str, str | None]:
    """Each picture with the caption file of its name, in the order of `CAPTION_SUFFIXES`; or None.

    If there is none, one that belongs to no other picture and whose name differs in capitals only: `E.TXT` of `e.png`.
    """
    exact = set(captions)
    stems = {os.path.splitext(path)[0] for path in pictures}
    folded: dict[str, str] = {}
    for caption in captions:
        stem, suffix = os.path.splitext(caption)
        if stem not in stems or suffix not in CAPTION_SUFFIXES:
            folded.setdefault(_folded(stem) + suffix.lower(), caption)

    def beside(path: str) -> str | None:
        stem = os.path.splitext(path)[0]
        names = [exact_name for suffix in CAPTION_SUFFIXES if (exact_name := stem + suffix) in exact]
        names += [folded[name] for suffix in CAPTION_SUFFIXES if (name := _folded(stem) + suffix) in folded]
        return names[0] if names else None

    return {path: beside(path) for path in pictures}


def _folded(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, name.casefold())


def read_caption(path: str | None) -> tuple[bytes, str]:
    """The bytes of a caption file, one more than allowed at most, and its suffix; ValueError if there is none."""
    if path is None:
        raise ValueError(f'no {" or ".join(CAPTION_SUFFIXES)} beside it')
    with open(path, 'rb') as file:
        return file.read(MAX_CAPTION_BYTES + 1), os.path.splitext(path)[1].lower()

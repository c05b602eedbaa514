"""Samples on disk: parts while they are drawn, so that none is drawn twice, and finally ADM's samples.npz."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pixnerd_plugin.formats.atomic import atomic_path, remove_leftovers
from pixnerd_plugin.formats.parts import PLAIN
from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.schema import Rule, shown
from pixnerd_plugin.formats.text_file import parse_table, read_text

from .npz import read_header
from .pictures import ARRAY, image_shape, open_array

_DESCRIPTION = dict(run=Rule('a table', lambda value: type(value) is dict))


class SampleStore:
    """Numbered pictures of one run in ``folder``: ``parts/FIRST_STOP.npy``, then ``samples.npz`` and ``samples.json``.

    Args:
        folder: where to write.
        run: what decides the pictures (weights, sampler, seed, ...), as plain numbers and strings. Pictures of another
            run are never mixed in.
        total: number of pictures wanted, from the first of the run. If the folder has more, they are kept.
        overwrite: remove pictures of another run instead of raising.

    Raises:
        ValueError: if the folder holds pictures of another run.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any], total: int, overwrite: bool = False):
        self.folder = Path(folder)
        self.parts = self.folder / 'parts'
        self.npz = self.folder / 'samples.npz'
        self.description = self.folder / 'samples.json'
        # As read back: tuples become lists.
        self.run = json.loads(json.dumps(run))
        self.total = total
        self.overwrite = overwrite

    def claim(self) -> None:
        """Prepare the folder. One process must do this before the others write.

        Raises:
            ValueError: if it holds pictures of another run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        if self.description.is_file():
            text = read_text(self.description, 'description of samples')
            other = parse_table(f'{self.description}', text, _DESCRIPTION, _DESCRIPTION)['run']
            different = sorted(key for key in {*other, *self.run} if other.get(key) != self.run.get(key))
            if different and not self.overwrite:
                key = different[0]
                raise ValueError(
                    f'{self.folder} holds samples of another run: {shown(key)[1:-1]} was {_brief(other.get(key))} and '
                    f'is now {_brief(self.run.get(key))}; give another --work-dir, or --overwrite'
                )
            if different:
                shutil.rmtree(self.parts, ignore_errors=True)
                self.npz.unlink(missing_ok=True)
        if not self.is_complete():
            self.parts.mkdir(exist_ok=True)
            remove_leftovers(self.parts)
        with atomic_path(self.description) as temporary:
            temporary.write_text(json.dumps(dict(run=self.run), indent=1) + '\n')

    def is_complete(self) -> bool:
        """Whether ``samples.npz`` exists with all pictures, or more."""
        return self._joined() >= self.total

    def _joined(self) -> int:
        """Number of pictures in ``samples.npz``, which are the first of the run."""
        if not self.npz.is_file():
            return 0
        with open_array(self.npz) as (_, shape):
            return shape[0]

    def missing(self, batch_size: int) -> list[range]:
        """Ranges of at most ``batch_size`` pictures that are still to be drawn."""
        done = np.zeros(self.total, bool)
        done[: self._joined()] = True
        for first, stop, _ in self._parts():
            done[first:stop] = True
        todo, gaps = np.flatnonzero(~done), []
        for run in np.split(todo, np.flatnonzero(np.diff(todo) > 1) + 1) if len(todo) else []:
            start, stop = int(run[0]), int(run[-1]) + 1
            gaps += [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
        return gaps

    def write(self, numbers: range, images: np.ndarray) -> None:
        """Write the pictures ``numbers``, uint8 ``(len(numbers), H, W, 3)``."""
        with atomic_path(self.parts / f'{numbers.start:08d}_{numbers.stop:08d}.npy') as temporary:
            np.save(temporary, images)

    def finish(self) -> None:
        """Join the parts into ``samples.npz`` (``arr_0``, uint8, NHWC), holding one part in memory at a time.

        Raises:
            ValueError: if a picture is missing.
        """
        if self.is_complete():
            return
        gaps = self.missing(self.total)
        if gaps:
            raise ValueError(f'{self.parts}: pictures {gaps[0].start} to {gaps[0].stop - 1} are missing; run again')
        parts, joined = self._parts(), self._joined()
        picture = self._part(*parts[0]).shape[1:]
        header = dict(descr='|u1', fortran_order=False, shape=(self.total, *picture))
        # Not compressed, like numpy.savez: noise and photographs hardly shrink.
        with (
            atomic_path(self.npz) as temporary,
            zipfile.ZipFile(temporary, 'w') as archive,
            archive.open(f'{ARRAY}.npy', 'w', force_zip64=True) as stream,
        ):
            np.lib.format.write_array_header_1_0(stream, header)
            if joined:
                with open_array(self.npz) as (before, _):
                    shutil.copyfileobj(before, stream)
            position = joined
            for first, stop, path in parts:
                last = min(stop, self.total)
                if last > position:
                    images = self._part(first, stop, path)
                    if images.shape[1:] != picture:
                        raise ValueError(f'{path} has pictures {images.shape[1:]}, and the parts before {picture}')
                    stream.write(images[position - first : last - first].tobytes())
                    position = last
        for _, stop, path in parts:
            # Pictures beyond the total are kept for a larger one.
            if stop <= self.total:
                path.unlink()
        if not any(self.parts.iterdir()):
            self.parts.rmdir()

    def _part(self, first: int, stop: int, path: Path) -> np.ndarray:
        """The pictures of a part, ``(stop - first, H, W, 3)``."""
        require_file(path, 'part of samples')
        with open(path, 'rb') as file:
            try:
                header = read_header(file)
                shape = image_shape(header, str(path))
                if shape[0] != stop - first or header.nbytes != path.stat().st_size:
                    raise ValueError(f'it has {path.stat().st_size} bytes and claims {shape}')
            except ValueError as error:
                raise ValueError(f'{path} is damaged: {error}; delete it and run again') from None
            return np.frombuffer(file.read(), np.uint8).reshape(shape)

    def _parts(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in self.parts.glob('*.npy'):
            match = re.fullmatch(r'(\d+)_(\d+)\.npy', path.name)
            if match:
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)


def _brief(value: Any) -> str:
    return json.dumps(value)[:100] if PLAIN.accepts(value) else shown(value)

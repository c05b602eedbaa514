"""Captions: parsing them, and the base of datasets of captioned pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pixnerd_plugin.formats.plain_file import parse_json

from .base import ImageDataset, log_fault
from .faults import Tally

# In the order in which they are looked for. An index of shards names them by their place here.
CAPTION_SUFFIXES = ('.txt', '.json', '.caption')
MAX_CAPTION_BYTES = 2**20

# So that a data set whose captions are all unreadable does not fill the disk with log lines.
_MAX_NAMED = 100


def parse_captions(encoded: bytes, suffix: str, key: str = 'caption', one_per_file: bool = False) -> list[str]:
    """Return the captions in a file's bytes: at least one, and none empty.

    Args:
        encoded: UTF-8. A `.txt` or `.caption` has one caption per line; a `.json` is an object whose field `key` is a
            string or a list of strings.
        suffix: one of `CAPTION_SUFFIXES`.
        key: field of a `.json`.
        one_per_file: the lines of a text are one caption, joined by spaces, and not one each.

    Raises:
        ValueError: if there are more than `MAX_CAPTION_BYTES`, they are not UTF-8 or not JSON, or they have no such
            field or no caption.
    """
    if len(encoded) > MAX_CAPTION_BYTES:
        raise ValueError(f'more than {MAX_CAPTION_BYTES} bytes of captions')
    text = encoded.decode('utf-8-sig')
    captions: Any
    if suffix != '.json':
        captions = [' '.join(text.split())] if one_per_file else text.splitlines()
    else:
        fields = parse_json(text)
        found = fields.get(key) if isinstance(fields, dict) else None
        captions = [found] if isinstance(found, str) else found
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f'the JSON field {key!r} is neither a string nor a list of strings')
    captions = [caption.strip() for caption in captions if caption.strip()]
    # JSON can hold half of a surrogate pair, which no tokenizer accepts.
    if any(not caption.isprintable() and _has_surrogates(caption) for caption in captions):
        raise ValueError('a caption in it is not valid Unicode')
    if not captions:
        raise ValueError('it has no caption')
    return captions


def _has_surrogates(text: str) -> bool:
    return any('\ud800' <= character <= '\udfff' for character in text)


class CaptionedDataset(ImageDataset):
    """A dataset whose samples have all `captions`, and as `text` the first (`RandomCaption` chooses another).

    A picture with a missing or unreadable caption gets the empty caption, which is the null condition. Such pictures
    are counted (`num_uncaptioned`), and the first 100 are named in the log.

    Args:
        caption_key: field of `.json` captions.
        one_caption_per_file: a text file holds one caption, of several lines or paragraphs, and not one a line.
        kwargs: `ImageDataset`'s arguments.
    """

    def __init__(self, caption_key: str = 'caption', one_caption_per_file: bool = False, **kwargs: Any):
        self.caption_key, self.one_caption_per_file = caption_key, one_caption_per_file
        super().__init__(**kwargs)

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        super().full_init()
        self._uncaptioned = Tally(len(self))

    @property
    def num_uncaptioned(self) -> int:
        """Number of different pictures that the workers of this rank found without a caption so far."""
        return len(self._uncaptioned)

    def with_captions(self, info: dict[str, Any], read: Callable[[], tuple[bytes, str]]) -> dict[str, Any]:
        """Add captions to a sample.

        Args:
            info: the sample, with `sample_idx` and `img_path`.
            read: returns the caption's bytes and suffix; raises OSError or ValueError if there is none.
        """
        try:
            info['captions'] = parse_captions(*read(), self.caption_key, self.one_caption_per_file)
        except (OSError, ValueError) as fault:
            info['captions'] = ['']
            if self._uncaptioned.add(info['sample_idx']) and self.num_uncaptioned <= _MAX_NAMED:
                more = '; the others are only counted' if self.num_uncaptioned == _MAX_NAMED else ''
                log_fault(f'picture without a caption: {info["img_path"]}: {fault}{more}')
        info['text'] = info['captions'][0]
        return info

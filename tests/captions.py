"""What the tiny text encoder reads of a caption of digits."""

from pixnerd_plugin.checkpoints.words import Words
from pixnerd_plugin.datasets.digit_scenes import MAX_WORDS, WORDS
from pixnerd_plugin.models.conditioners.tiny_qwen3 import PAD, UNKNOWN

_TOKENIZER = Words([PAD, UNKNOWN, *WORDS], MAX_WORDS, pad=0, unknown=1)


def check_caption(caption):
    """Every word is known, and none is cut off."""
    tokens, unknown = _TOKENIZER.encode(caption)
    assert not unknown, caption
    assert len(tokens) <= MAX_WORDS, caption

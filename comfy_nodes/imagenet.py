"""The names of ImageNet's classes, in the order of their numbers; their source is in NOTICE."""

from __future__ import annotations

from pathlib import Path


def imagenet_names() -> list[str]:
    """The 1000 names."""
    return Path(__file__).with_suffix('.txt').read_text(encoding='utf-8').splitlines()

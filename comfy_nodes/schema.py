"""Fields of a node's schema that newer hosts have and older ones do not know."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

ADVANCED = {'advanced': True}
"""Extra entry of widgets that newer pages fold away."""


def search_aliases(*words: str) -> dict[str, Any]:
    """Words that find a node besides its name, where the host's schema has room for them."""
    known = inspect.signature(io.Schema).parameters
    return {'search_aliases': list(words)} if 'search_aliases' in known else {}

"""Fields of a node's schema that newer hosts have and older ones do not know."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io


def advanced(widget: Any, is_so: bool = True) -> Any:
    """The widget, marked as one that newer pages fold away."""
    if is_so:
        # Older hosts have the attribute, and no argument for it.
        widget.extra_dict = {**widget.extra_dict, 'advanced': True}
    return widget


def search_aliases(*words: str) -> dict[str, Any]:
    """Words that find a node besides its name, where the host's schema has room for them."""
    known = inspect.signature(io.Schema).parameters
    return {'search_aliases': list(words)} if 'search_aliases' in known else {}

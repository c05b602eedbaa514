"""How a file is refused."""

import resource
from pathlib import Path

import pytest

from pixnerd_plugin import load_backbone


def refusal(path: Path, load=load_backbone) -> str:
    """The one line with which a file is refused, which must cost next to no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=path.name) as error:
        load(path)
    message = str(error.value)
    assert '\n' not in message
    assert len(message) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, 'more than 300 MB'
    return message

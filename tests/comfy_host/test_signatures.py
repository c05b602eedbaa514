"""What the pack calls of ComfyUI, against this host; and what CI, which has none, believes of the newest."""

import pytest

from tests.comfy_nodes.host_calls import host_calls, known_signatures, problem, signature_of

from .host import import_host, require_host

require_host()
import_host()


def test_each_call_fits_this_host():
    assert [text for call in host_calls() if (text := problem(call, signature_of(call.name)))] == []


def test_what_ci_believes_is_so():
    from comfyui_version import __version__

    known = known_signatures()
    if __version__ != known['host']:
        pytest.skip(f'the signatures are those of {known["host"]}')
    assert {name: signature_of(name) for name in known['signatures']} == known['signatures']

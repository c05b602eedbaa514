"""One suite in one pytest process or, as ``tests/run.py`` starts it, in two that share the files out between them."""

import gc
import os
from itertools import groupby
from pathlib import Path

import pytest

SHARED = os.environ.get('PIXNERD_TESTS_SHARED')
"""A folder where a process claims each file of tests that it runs."""


def pytest_collection_finish(session):
    # What was imported is no garbage, and takes most of the time when it is searched for some.
    gc.freeze()
    if SHARED and not claim('left out'):
        # Both have left out the same; one of them counts it.
        for what in ('skipped', 'deselected'):
            session.config.pluginmanager.get_plugin('terminalreporter').stats.pop(what, None)


def claim(name: str) -> bool:
    """Whether ``name`` is this process' to do: the first to ask gets it."""
    try:
        Path(SHARED, name.replace('/', '_')).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """As pytest's own, for the files that are claimed: those with slow tests first, so that both end together."""
    if not SHARED or session.testsfailed or session.config.option.collectonly:
        return None
    files = [(name, list(items)) for name, items in groupby(session.items, lambda item: item.location[0])]
    files.sort(key=lambda file: -sum('slow' in item.keywords for item in file[1]))
    for name, items in files:
        if claim(name):
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
    return True


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
    """The work folder of a whole run of ``data/tiny_digits.py``, only to be read."""
    from .training import train

    work_dir = tmp_path_factory.mktemp('uninterrupted')
    train(work_dir)
    return work_dir

import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def server(tmp_path_factory):
    from .server import Server, fill_base_folder

    base = tmp_path_factory.mktemp('comfyui')
    fill_base_folder(base)
    server = Server(Path(os.environ['COMFYUI_PATH']).resolve(), base)
    yield server
    server.stop()


@pytest.fixture(scope='session')
def object_info(server):
    return server.get('/object_info')

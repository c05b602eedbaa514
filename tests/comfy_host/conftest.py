import os
from pathlib import Path

import pytest
import torch

from .host import TEXT_DIM, build_net, class_conditioning, save_net


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


@pytest.fixture(scope='module', params=['class', 'text'])
def kind(request):
    return request.param


@pytest.fixture(scope='module')
def net(kind):
    return build_net(kind)


@pytest.fixture
def model(kind, net, tmp_path):
    import comfy.sd

    save_net(net, tmp_path / 'model.safetensors')
    return comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))


@pytest.fixture(scope='module')
def conds(kind):
    """What the library takes, and the same as ComfyUI's CONDITIONING; each conditional and null."""
    if kind == 'class':
        pair = torch.tensor([3]), torch.tensor([5])
        return pair, [class_conditioning(int(label)) for label in pair]
    generator = torch.Generator().manual_seed(1)
    pair = [torch.randn(1, 128, TEXT_DIM, generator=generator) for _ in range(2)]
    return pair, [[[cond, {'pixnerd_text': True}]] for cond in pair]

"""A checkpoint that version 0.1 wrote after 4 iterations of ``data/tiny_digits.py``, and what 0.1 made of it."""

import shutil

import torch
from safetensors.torch import load_file

from pixnerd_plugin import load_pipeline
from tests.golden import relative_error
from tests.training import DATA, load, train

FOLDER = DATA / 'v0.1'
# Products are not the same to the last bit on every machine.
TOLERANCE = 1e-4


def test_it_draws_the_same_pictures():
    pipeline = load_pipeline(FOLDER / 'iter_4.pth', device='cpu')
    assert pipeline.size == (16, 16)
    images = pipeline.sample([3, 7], seeds=[0, 1])
    assert relative_error(images, load_file(FOLDER / 'expected.safetensors')['images']) < TOLERANCE


def test_it_resumes_to_the_same_weights(tmp_path):
    shutil.copy(FOLDER / 'iter_4.pth', tmp_path)
    # Python or a package may be another version, which the checkpoint notes.
    train(tmp_path, resume=True, resume_anyway=True)
    expected, state = load_file(FOLDER / 'expected.safetensors'), load(tmp_path / 'iter_6.pth')
    raw = {name.removeprefix('module.'): tensor for name, tensor in state['ema_state_dict'].items()}
    for label, tensors in (('ema', state['state_dict']), ('raw', raw)):
        names = [name for name in tensors if name.startswith('backbone.')]
        assert {f'{label}.{name}' for name in names} == {name for name in expected if name.startswith(f'{label}.')}
        ours = torch.cat([tensors[name].flatten() for name in names])
        theirs = torch.cat([expected[f'{label}.{name}'].flatten() for name in names])
        assert relative_error(ours, theirs) < TOLERANCE

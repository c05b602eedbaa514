import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixnerd_plugin.models.frozen import fast_dtype
from pixnerd_plugin.models.teachers import DINOv2Teacher
from pixnerd_plugin.registry import MODELS

CONFIG = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, layerscale_value=0.5
)


@pytest.fixture(scope='module')
def teacher():
    return MODELS.build(dict(type='DINOv2Teacher', config=CONFIG))


@pytest.fixture
def folder(tmp_path, teacher):
    teacher.encoder.module.save_pretrained(tmp_path / 'dino')
    return tmp_path / 'dino'


def direct(module, images, size):
    """The teacher's features as REFERENCE states them, on transformers alone."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    pixels = F.interpolate(((images + 1) / 2 - mean) / std, size, mode='bicubic')
    with torch.no_grad():
        return module(pixels).last_hidden_state[:, 1:]


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (32, 32), (64, 32), (16, 112), (256, 256)])
def test_one_token_per_patch_of_the_student(teacher, height, width):
    images = torch.rand(2, 3, height, width) * 2 - 1
    tokens = teacher(images)
    assert tokens.shape == (2, height // 16 * (width // 16), teacher.dim)
    expected = direct(teacher.encoder.module, images, (height // 16 * 14, width // 16 * 14))
    torch.testing.assert_close(tokens, expected)


def test_tokens_are_row_major_and_stay_where_their_patch_is(teacher):
    images = torch.zeros(2, 3, 32, 64)
    images[1, :, 16:, 48:] = 1
    changed = (teacher(images)[1] - teacher(images)[0]).norm(dim=-1)
    assert changed.argmax() == 1 * 4 + 3


def test_positions_are_interpolated_to_the_grid(teacher):
    embeddings = teacher.encoder.module.embeddings
    tokens = torch.zeros(1, 1 + 2 * 8, 16)
    positions = embeddings.interpolate_pos_encoding(tokens, 2 * 14, 8 * 14)
    grid = embeddings.position_embeddings[:, 1:].view(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (2, 8), mode='bicubic').flatten(2).transpose(1, 2)
    torch.testing.assert_close(positions[:, 1:], expected)


def test_other_patch_sizes_give_their_own_grid():
    assert DINOv2Teacher(config=CONFIG, patch_size=8)(torch.zeros(1, 3, 32, 24)).shape == (1, 12, 16)


def test_a_folder_gives_what_was_saved(teacher, folder):
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    assert torch.equal(DINOv2Teacher(folder)(images), teacher(images))


def test_register_tokens_are_dropped(tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    module = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**CONFIG, num_register_tokens=3)).eval()
    module.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 64, 32) * 2 - 1
    expected = direct(module, images, (56, 28))[:, 3:]
    torch.testing.assert_close(DINOv2Teacher(tmp_path)(images), expected)


def test_it_is_frozen_and_outside_its_owner(teacher):
    assert not teacher(torch.zeros(1, 3, 32, 32)).requires_grad
    # Gradients pass through it to images that want them, for a perceptual term.
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    teacher(images).square().sum().backward()
    assert images.grad.any()
    module = teacher.encoder.module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    owner = nn.Linear(2, 2)
    owner.teacher = teacher
    assert set(owner.state_dict()) == {'weight', 'bias'}
    assert copy.deepcopy(owner).teacher.encoder is teacher.encoder


def test_random_weights_are_always_the_same_and_leave_the_random_stream_alone(teacher):
    torch.manual_seed(1)
    images = torch.rand(1, 3, 32, 32)
    following = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1, 3, 32, 32), images)
    tokens = DINOv2Teacher(config=CONFIG)(images)
    assert torch.equal(torch.rand(2), following)
    assert torch.equal(tokens, teacher(images))


def test_precision_is_its_own_under_autocast(teacher):
    images = torch.rand(1, 3, 32, 32)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(teacher(images), teacher(images.clone()))
        autocast = teacher(images)
    assert torch.equal(autocast, teacher(images))
    half = DINOv2Teacher(config=CONFIG, dtype='bfloat16')(images)
    assert half.dtype == torch.float32
    assert 0 < (half - autocast).norm() / autocast.norm() < 0.1


def test_unusable_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match='model=FOLDER or config'):
        DINOv2Teacher()
    with pytest.raises(ValueError, match='float8'):
        DINOv2Teacher(config=CONFIG, dtype='float8')
    with pytest.raises(FileNotFoundError, match=r'/no/such.*facebook/dinov2-base'):
        DINOv2Teacher('/no/such')
    (tmp_path / 'config.json').write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="'vit' model, not dinov2 or dinov2_with_registers"):
        DINOv2Teacher(tmp_path)


def test_a_side_that_is_no_multiple_of_the_patch_is_refused(teacher):
    with pytest.raises(ValueError, match=r'32×40.*multiples of 16'):
        teacher(torch.zeros(1, 3, 32, 40))


def test_on_a_gpu_that_has_bf16_the_teacher_computes_in_it(monkeypatch):
    teacher = DINOv2Teacher(config=CONFIG)
    images = torch.rand(1, 3, 32, 32)
    assert teacher(images).dtype == torch.float32
    assert teacher.encoder.module.dtype == torch.float32
    monkeypatch.setattr('pixnerd_plugin.models.teachers.dinov2.fast_dtype', lambda device: torch.bfloat16)
    assert teacher(images).dtype == torch.float32
    assert teacher.encoder.module.dtype == torch.bfloat16
    exact = DINOv2Teacher(config=CONFIG, dtype='float32')
    exact(images)
    assert exact.encoder.module.dtype == torch.float32


@pytest.mark.parametrize(('kind', 'has_bf16'), [('cpu', True), ('cuda', True), ('cuda', False)])
def test_bf16_is_for_gpus_that_have_it(monkeypatch, kind, has_bf16):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: has_bf16)
    assert (fast_dtype(torch.device(kind)) == torch.bfloat16) == (kind == 'cuda' and has_bf16)

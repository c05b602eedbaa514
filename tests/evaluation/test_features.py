"""DINOv2's class token as the features of a Fréchet distance."""

import pytest
import torch
from torch.nn.functional import interpolate

from pixnerd_plugin.registry import MODELS

CONFIG = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)


@pytest.fixture
def saved(tmp_path):
    """A folder of a tiny DINOv2 of random weights, and the model in it."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**CONFIG)).eval()
    model.save_pretrained(tmp_path / 'dino')
    return tmp_path / 'dino', model


@torch.no_grad()
def test_dinov2_gives_the_class_token_of_resized_normalised_pictures(saved):
    folder, model = saved
    extractor = MODELS.build(dict(type='DINOv2Features', model=folder, size=56))
    images = torch.randint(0, 256, (3, 3, 20, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(images)

    pixels = interpolate(images.double() / 255, (56, 56), mode='bicubic', antialias=True).clamp(0, 1)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    expected = model(((pixels - mean) / std).float()).last_hidden_state[:, 0]
    torch.testing.assert_close(features.pool, expected, rtol=1e-3, atol=1e-4)
    assert features.pool.shape == (3, extractor.dim) == (3, 16)
    assert features.logits is None
    assert features.spatial is None
    # One picture's features do not depend on those beside it.
    torch.testing.assert_close(extractor(images[1:2]).pool, features.pool[1:2])


def test_a_dinov2_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere') as raised:
        MODELS.build(dict(type='DINOv2Features', model=tmp_path / 'nowhere'))
    assert '\n' not in str(raised.value)

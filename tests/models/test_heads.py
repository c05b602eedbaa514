import math

import pytest
import torch

from pixnerd_plugin.functional.coordinates import coordinate_features, num_features
from pixnerd_plugin.functional.patches import from_patches, to_patches
from pixnerd_plugin.functional.positions import pixel_positions
from pixnerd_plugin.models.heads import LinearHead, NeuralFieldHead


def test_patches_are_row_major_and_go_back():
    image = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = to_patches(image, (2, 3))
    assert patches.shape == (2, 6, 2, 2, 3)
    assert torch.equal(patches[1, 4, 1, 0], image[1, :, 3, 2])
    assert torch.equal(from_patches(patches, (2, 3)), image)


@pytest.mark.parametrize('alignment', ['corners', 'centers'])
def test_base_pixels_sit_from_0_to_1(alignment):
    torch.testing.assert_close(pixel_positions(16, 16, alignment), torch.linspace(0, 1, 16))


def test_centers_keep_pixels_where_they_are_in_the_picture():
    base, fine = pixel_positions(8, 8, 'centers'), pixel_positions(24, 8, 'centers')
    # Every third pixel of a three times finer picture shares its centre with a base pixel.
    torch.testing.assert_close(fine[1::3], base)
    # The gap to the next patch is as wide as any other; corner-aligned, it closes.
    step = fine[1] - fine[0]
    torch.testing.assert_close((fine[0] + 8 / 7) - fine[-1], step)
    assert pixel_positions(24, 8, 'corners')[-1] == 1


def test_dct_features_follow_the_formula():
    y, x = torch.tensor([0.0, 0.3]), torch.tensor([0.0, 0.5, 0.9])
    features = coordinate_features('dct', 8, y, x)
    k = torch.linspace(0, 8, 8)
    a, b = 3, 5
    expected = math.cos(math.pi * 0.9 * k[a]) * math.cos(math.pi * 0.3 * k[b]) / (1 + k[a] * k[b])
    assert features.shape == (2, 3, 64)
    assert features[1, 2, a * 8 + b].item() == pytest.approx(expected.item(), abs=1e-6)


def test_cosine_features_follow_the_formula():
    y, x = torch.tensor([0.25]), torch.tensor([0.75])
    features = coordinate_features('cosine', 8, y, x)[0, 0]
    f = 10000 ** (-4 * 5 / 128)
    assert features[10].item() == pytest.approx(math.cos(16 * 0.75 * f), abs=1e-5)
    assert features[11].item() == pytest.approx(math.cos(16 * 0.25 * f), abs=1e-5)


def test_sincos_features_follow_the_formula():
    features = coordinate_features('sincos', 3, torch.tensor([0.25]), torch.tensor([0.7]))[0, 0]
    expected = [f(2**k * math.pi * u) for u in (0.7, 0.25) for f in (math.sin, math.cos) for k in range(3)]
    torch.testing.assert_close(features, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize('kind', ['dct', 'cosine', 'sincos'])
def test_number_of_features(kind):
    assert coordinate_features(kind, 6, torch.rand(3), torch.rand(4)).shape == (3, 4, num_features(kind, 6))


@pytest.mark.parametrize('coordinates', ['dct', 'cosine', 'sincos'])
@pytest.mark.parametrize('normalize', ['fc1', 'fc1_fc2', 'fc1_fc2_output'])
def test_every_ablation_evaluates_any_pixels(coordinates, normalize):
    head = NeuralFieldHead(
        dim=12,
        patch_size=4,
        width=6,
        depth=3,
        mlp_ratio=1,
        coordinates=coordinates,
        num_frequencies=4,
        normalize=normalize,
    )
    s, pixels = torch.randn(2, 5, 12), torch.randn(2, 5, 3, 7, 3)
    assert head(s, pixels).shape == pixels.shape


def test_a_pixel_depends_on_its_own_value_only():
    head = NeuralFieldHead(dim=12, patch_size=4, width=6)
    s, pixels = torch.randn(1, 2, 12), torch.randn(1, 2, 4, 4, 3)
    before = head(s, pixels)
    pixels[0, 1, 2, 3] += 1
    changed = (head(s, pixels) != before).any(-1).nonzero().tolist()
    assert changed == [[0, 1, 2, 3]]


def test_linear_head_refuses_other_sizes():
    head = LinearHead(dim=12, patch_size=4)
    assert head(torch.randn(1, 2, 12), torch.randn(1, 2, 4, 4, 3)).shape == (1, 2, 4, 4, 3)
    with pytest.raises(ValueError, match='8x8'):
        head(torch.randn(1, 2, 12), torch.randn(1, 2, 8, 8, 3))

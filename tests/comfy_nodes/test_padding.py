import pytest
import torch

from comfy_nodes.padding import area_grid, grid_of, pad, padded_size


@pytest.mark.parametrize(
    ('size', 'grid', 'expected', 'padded'),
    [
        ((512, 256), None, (32, 16), (512, 256)),
        ((500, 257), None, (32, 17), (512, 272)),
        ((7, 16), None, (1, 1), (16, 16)),
        ((96, 40), (32, 8), (32, 8), (96, 40)),
        ((90, 5), (32, 8), (32, 8), (96, 8)),
    ],
)
def test_pictures_are_padded_to_whole_patches(size, grid, expected, padded):
    assert grid_of(size, 16, grid) == expected
    assert padded_size(size, 16, grid) == padded


def test_padding_repeats_the_picture():
    x = torch.arange(2 * 3.0).view(1, 1, 2, 3)
    padded = pad(x, (5, 4))
    assert torch.equal(padded[..., :2, :3], x)
    assert torch.equal(padded[0, 0], x[0, 0].repeat(3, 2)[:5, :4])
    assert pad(x, (2, 3)) is x


@pytest.mark.parametrize(
    ('area', 'expected'), [((64, 192), (4, 4)), ((64, 96), (4, 2)), ((8, 3), (1, 1)), ((33, 60), (2, 1))]
)
def test_an_area_has_its_share_of_the_grid(area, expected):
    assert area_grid(area, (64, 192), (4, 4)) == expected
    assert area_grid(area, (64, 192), None) is None

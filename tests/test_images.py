import numpy as np
import torch
from PIL import Image

from pixnerd_plugin.images import image_grid, save_png, to_uint8


def test_pixels_are_rounded_and_clipped_as_the_release_does():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_grid_holds_the_pictures_row_by_row():
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    grid = image_grid(pictures, columns=3, gap=1)
    assert grid.shape == (5, 11, 3)
    assert grid[0, ::4, 0].tolist() == [0, 1, 2]
    assert grid[3, ::4, 0].tolist() == [3, 4, 255]


def test_a_png_carries_its_parameters(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    save_png(tmp_path / 'a.png', pixels, dict(seed='7'))
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.text == dict(seed='7')
        assert np.array_equal(np.asarray(picture), pixels)

import pytest
import torch

from comfy_nodes.guards import check_condition, check_finite, check_region, check_safetensors, check_size

LABEL = torch.tensor([3])
TEXT = torch.zeros(1, 128, 24)


class TestSize:
    @pytest.mark.parametrize(('size', 'grid'), [((512, 256), None), ((96, 40), (32, 8))])
    def test_multiples_pass(self, size, grid):
        check_size(size, 16, grid)

    @pytest.mark.parametrize(
        ('size', 'grid', 'message'),
        [
            ((512, 500), None, 'width is 500, .* 16 .* set it to 496 or 512'),
            ((8, 512), None, 'height is 8, .* set it to 16'),
            ((1000, 1024), (32, 32), 'height is 1000, .* 32 .* set it to 992 or 1024'),
        ],
    )
    def test_others_name_widget_and_fix(self, size, grid, message):
        with pytest.raises(ValueError, match=message):
            check_size(size, 16, grid)


class TestCondition:
    def test_what_fits_is_returned(self):
        assert check_condition((TEXT, LABEL), 10, None, 0, 'positive') is LABEL
        assert check_condition((TEXT, None), None, 24, 128, 'positive') is TEXT

    @pytest.mark.parametrize(
        ('cond', 'model', 'message'),
        [
            ((TEXT, None), (10, None, 0), 'negative holds a text, .* connect PixNerd Class Label'),
            ((TEXT, LABEL), (None, 24, 128), 'negative holds a class label, .* connect PixNerd Text Encode'),
            ((TEXT, LABEL), (2, None, 0), 'class 3 of another model, .* 0 to 1'),
            ((TEXT, None), (None, 2048, 128), 'another text encoder .* width 2048'),
            ((TEXT, None), (None, 24, 77), 'another text encoder .* up to 77'),
        ],
    )
    def test_the_rest_says_what_to_connect(self, cond, model, message):
        with pytest.raises(ValueError, match=message):
            check_condition(cond, *model, 'negative')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_output_that_is_not_finite(value):
    check_finite(torch.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r't = 0\.500: set weight_dtype'):
        check_finite(torch.tensor([0.0, value]), 0.5)


def test_files():
    check_safetensors('a/b.safetensors', 'model')
    with pytest.raises(ValueError, match=r'tools/convert_checkpoint\.py b\.ckpt b\.safetensors'):
        check_safetensors('b.ckpt', 'model')
    with pytest.raises(ValueError, match=r'b\.bin is not a safetensors file'):
        check_safetensors('b.bin', 'text encoder')


@pytest.mark.parametrize('region', [(0, 0, 65, 10), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 60, 10, 130)])
def test_regions_outside(region):
    check_region((64, 128), (0, 0, 64, 128))
    with pytest.raises(ValueError, match='change region_x'):
        check_region((64, 128), region)

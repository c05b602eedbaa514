import pytest
import torch

from comfy_nodes.guards import (
    check_batch_index,
    check_condition,
    check_finite,
    check_region,
    check_safetensors,
    check_shift,
    check_sigmas,
    refuse_unknown_conditions,
)

LABEL = torch.eye(10)[3][None, None]
TEXT = torch.zeros(1, 128, 24)


class TestCondition:
    def test_what_fits_is_returned(self):
        assert torch.equal(check_condition(LABEL, 10, 10, None, 0, 'positive'), LABEL[:, 0])
        assert check_condition(TEXT, None, None, 24, 128, 'positive') is TEXT

    @pytest.mark.parametrize(
        ('cond', 'classes', 'model', 'message'),
        [
            (TEXT, None, (10, None, 0), 'negative holds a text, .* connect PixNerd Class Label'),
            (LABEL, 10, (None, 24, 128), 'negative holds a class label, .* connect PixNerd Text Encode'),
            (LABEL, 10, (2, None, 0), r'a class of another model \(10 classes, and this model has 2\)'),
            (LABEL.repeat(1, 2, 1), 10, (10, None, 0), '2 classes in a row .* mix them by Conditioning Average'),
            (TEXT, None, (None, 2048, 128), 'another text encoder .* 24 wide, .* takes 2048'),
            (TEXT, None, (None, 24, 77), 'negative holds 128 tokens of text, and this model reads 77'),
            (None, None, (None, 24, 77), 'negative holds nothing'),
            (TEXT[0], None, (None, 24, 77), 'negative holds nothing'),
        ],
    )
    def test_the_rest_says_what_to_do(self, cond, classes, model, message):
        with pytest.raises(ValueError, match=message):
            check_condition(cond, classes, *model, 'negative')

    @pytest.mark.parametrize('name', ['control', 'gligen', 'unclip_conditioning', 'reference_latents'])
    def test_what_the_model_would_not_feel(self, name):
        refuse_unknown_conditions({name: None}, 'positive')
        with pytest.raises(ValueError, match=r'^positive holds a .*\.$'):
            refuse_unknown_conditions({name: object()}, 'positive')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_output_that_is_not_finite(value):
    check_finite(torch.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r't = 0\.500: set weight_dtype'):
        check_finite(torch.tensor([0.0, value]), 0.5)
    with pytest.raises(ValueError, match=r'the picture is not finite .*\): set weight_dtype'):
        check_finite(torch.tensor([0.0, value]))


def test_files():
    check_safetensors('a/b.safetensors', 'text encoder')
    with pytest.raises(ValueError, match=r'b\.bin is not a safetensors file'):
        check_safetensors('b.bin', 'text encoder')


@pytest.mark.parametrize('region', [(0, 0, 65, 10), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 60, 10, 130)])
def test_regions_outside(region):
    check_region((64, 128), (0, 0, 64, 128))
    with pytest.raises(ValueError, match='change region_x'):
        check_region((64, 128), region)


@pytest.mark.parametrize(
    ('sigmas', 'message'),
    [
        ([14.6, 1.0, 0.0], 'sigma 14.6, .* connect PixNerd Sigmas'),
        ([1.0, float('nan'), 0.0], 'sigma nan'),
        ([1.0, -0.5], 'sigma -0.5'),
        ([0.5, 1.0, 0.0], 'rise on the way'),
    ],
)
def test_sigmas_of_other_models(sigmas, message):
    check_sigmas([1.0, 1.0, 0.5, 0.0, 0.0])
    with pytest.raises(ValueError, match=message):
        check_sigmas(sigmas)


@pytest.mark.parametrize('shift', [float('nan'), float('inf'), 0.0, -2.62])
def test_shifts(shift):
    assert check_shift(3.0) == 3.0
    with pytest.raises(ValueError, match='the shift is'):
        check_shift(shift)


def test_pictures_of_a_batch():
    check_batch_index(3, -1)
    check_batch_index(3, 2)
    with pytest.raises(ValueError, match='from 0 to 2, or -1'):
        check_batch_index(3, 3)

"""What is asked for is what is drawn: the shipped workflows with a model that knows four colours and three digits."""

import json

import numpy as np
import pytest
from PIL import Image

from .host import ROOT, require_host

require_host()

from . import painter  # noqa: E402
from .painter import ENCODER, NETWORK, SIDE, read  # noqa: E402
from .workflow import to_prompt  # noqa: E402


@pytest.fixture(scope='module')
def models(server, tmp_path_factory):
    painter.write_painter(server.base / 'models', tmp_path_factory.mktemp('painter') / 'encoder')


@pytest.fixture
def ask(models, server, object_info):
    """Run a shipped workflow with that model; ``changes`` are by the type of node, ``edit`` has the prompt."""

    def run(name, changes, edit=lambda prompt: None):
        (path,) = (ROOT / 'example_workflows').glob(f'*_{name}.json')
        prompt = to_prompt(json.loads(path.read_text()), object_info)
        changes = {
            'PixNerdModelLoader': dict(model_name=NETWORK),
            'PixNerdTextEncoderLoader': dict(text_encoder_name=ENCODER),
            'PixNerdEmptyImage': dict(width=SIDE, height=SIDE),
            'ImageScale': dict(width=SIDE, height=SIDE),
        } | changes
        for node in prompt.values():
            node['inputs'].update(changes.get(node['class_type'], {}))
        edit(prompt)
        return server.run(prompt)

    return run


@pytest.mark.parametrize('text', ['a red one', 'a green eight', 'a blue four'])
def test_a_prompt(ask, text):
    (picture,) = ask('text_to_image', {'PixNerdTextEncode': dict(text=text)})
    assert read(picture) == text


def test_the_stock_nodes(ask):
    def say(prompt):
        (sampler,) = (node for node in prompt.values() if node['class_type'] == 'KSampler')
        prompt[sampler['inputs']['positive'][0]]['inputs']['text'] = 'a yellow eight'

    (picture,) = ask('text_to_image_ksampler', {}, say)
    assert read(picture) == 'a yellow eight'


def test_a_digit_here_and_another_there(ask):
    def halves(prompt):
        (encoder,) = (number for number, node in prompt.items() if node['class_type'] == 'PixNerdTextEncoderLoader')
        (sampler,) = (node for node in prompt.values() if node['class_type'] == 'PixNerdSampler')
        for x, text in ((0.0, 'a red four'), (0.5, 'a blue eight')):
            said, put = f'said {text}', f'put {text}'
            prompt[said] = dict(class_type='CLIPTextEncode', inputs=dict(clip=[encoder, 0], text=text))
            area = dict(conditioning=[said, 0], width=0.5, height=1.0, x=x, y=0.0, strength=1.0)
            prompt[put] = dict(class_type='ConditioningSetAreaPercentage', inputs=area)
        both = dict(conditioning_1=['put a red four', 0], conditioning_2=['put a blue eight', 0])
        prompt['both'] = dict(class_type='ConditioningCombine', inputs=both)
        sampler['inputs']['positive'] = ['both', 0]

    (picture,) = ask('text_to_image', {'PixNerdEmptyImage': dict(width=2 * SIDE, height=SIDE)}, halves)
    assert read(picture[:, :SIDE]) == 'a red four'
    assert read(picture[:, SIDE:]) == 'a blue eight'


def test_another_digit_in_its_place(ask, server):
    before = painter.draw('red', 'four').copy()
    frame = np.pad(np.zeros((SIDE - 4, SIDE - 4), bool), 2, constant_values=True)
    before[frame] = 40
    # LoadImage takes what is transparent for the mask.
    pixels = np.dstack([before, np.where(frame, 255, 0)]).astype(np.uint8)
    Image.fromarray(pixels).save(server.base / 'input/framed_digit.png')
    changes = {'LoadImage': dict(image='framed_digit.png'), 'PixNerdTextEncode': dict(text='a green eight')}
    (picture,) = ask('inpaint', changes)
    assert np.abs(picture[frame].astype(int) - 40).max() <= 1
    assert read(picture) == 'a green eight'


def test_a_finer_decode_of_the_same_field(ask):
    pictures = ask('zoom_region', {'PixNerdTextEncode': dict(text='a green one')}, whole_at_four_times_the_size)
    whole, large = sorted(pictures, key=len)
    assert large.shape == (4 * SIDE, 4 * SIDE, 3)
    assert read(whole) == read(large) == 'a green one'


def whole_at_four_times_the_size(prompt):
    decodes = [node['inputs'] for node in prompt.values() if node['class_type'] == 'PixNerdDecode']
    (fine,) = (inputs for inputs in decodes if inputs['width'] > 0)
    fine.update(width=4 * SIDE, height=4 * SIDE, region_x=0, region_y=0, region_width=0, region_height=0)


def test_more_pixels_of_the_same_tokens(ask):
    def sizes(prompt):
        empty = [node['inputs'] for node in prompt.values() if node['class_type'] == 'PixNerdEmptyImage']
        for inputs, (height, width) in zip(empty, ((2 * SIDE, 2 * SIDE), (SIDE, 2 * SIDE)), strict=True):
            inputs.update(height=height, width=width)

    changes = {'PixNerdTextEncode': dict(text='a yellow four'), 'PixNerdResolution': dict(base_size=SIDE)}
    pictures = ask('fixed_tokens_1024', changes, sizes)
    assert sorted(picture.shape[:2] for picture in pictures) == [(SIDE, 2 * SIDE), (2 * SIDE, 2 * SIDE)]
    assert [read(picture) for picture in pictures] == ['a yellow four'] * 2

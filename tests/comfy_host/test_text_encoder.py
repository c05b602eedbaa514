"""The CLIP on ComfyUI's llama blocks against transformers' Qwen3."""

import pytest
import torch

from .host import import_host, require_host, save_text_encoder_folder, text_encoder_tensors

COMFYUI = require_host()

PROMPTS = [
    '',
    'a photo of a cat',
    'a (very:1.4) detailed [portrait], embedding:nothing \\(oil\\)',
    '一只猫的照片',
    'a steampunk laboratory, brass pipes, warm light, ' * 20,
]


@pytest.fixture(scope='module')
def clip():
    import_host()
    from comfy_nodes.text_encoder import load_text_encoder

    return load_text_encoder(text_encoder_tensors())


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    import_host()
    from pixnerd_plugin.models.conditioners import Qwen3TextEncoder

    folder = tmp_path_factory.mktemp('qwen3') / 'tiny'
    save_text_encoder_folder(folder, COMFYUI)
    return Qwen3TextEncoder(folder, dtype='float32')


@pytest.mark.parametrize('prompt', PROMPTS)
def test_it_gives_the_embeddings_of_our_encoder(clip, encoder, prompt):
    ids, _ = encoder.tokenize([prompt])
    row = clip.tokenize(prompt)['pixnerd_qwen3'][0]
    assert [token for token, _ in row] == ids[0].tolist()
    assert {weight for _, weight in row} == {1.0}

    expected = encoder([prompt])
    cond = clip.encode_from_tokens(clip.tokenize(prompt))
    assert cond.shape == expected.shape == (1, 128, 24)
    assert (cond - expected).norm() / expected.norm() <= 1e-4


def test_the_stock_node_encodes_the_same(clip):
    from nodes import CLIPTextEncode

    from comfy_nodes.nodes import PixNerdTextEncode

    ((cond, extra),) = CLIPTextEncode().encode(clip, 'a cat')[0]
    positive, negative = PixNerdTextEncode.execute(clip, 'a cat', '').args
    assert torch.equal(cond, positive[0][0])
    assert not torch.equal(cond, negative[0][0])
    assert extra['pooled_output'] is None


@pytest.mark.parametrize('prefix', ['', 'model.'])
def test_both_key_layouts_load(prefix):
    import_host()
    from comfy_nodes.text_encoder import load_text_encoder

    load_text_encoder({prefix + name: tensor for name, tensor in text_encoder_tensors().items()})


def test_another_encoder_is_refused():
    import_host()
    from comfy_nodes.text_encoder import load_text_encoder

    tensors = text_encoder_tensors()
    del tensors['layers.0.self_attn.q_norm.weight']
    with pytest.raises(ValueError, match='not a Qwen3 text encoder'):
        load_text_encoder(tensors)
    tensors = text_encoder_tensors()
    del tensors['norm.weight']
    with pytest.raises(ValueError, match='not a whole Qwen3'):
        load_text_encoder(tensors)


def test_a_tiny_encoder_brings_its_words(tmp_path, caplog):
    import_host()
    from safetensors.torch import load_file

    from comfy_nodes.text_encoder import load_text_encoder
    from pixnerd_plugin.checkpoints.text_encoder import convert_text_encoder
    from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
    from pixnerd_plugin.models.conditioners.tiny_qwen3 import write_tiny_qwen3

    write_tiny_qwen3(tmp_path / 'tiny', ['a', 'red', 'three', ','], 8, dim=32, num_heads=2)
    convert_text_encoder(tmp_path / 'tiny', tmp_path / 'tiny.safetensors')
    clip = load_text_encoder(load_file(tmp_path / 'tiny.safetensors'))
    encoder = Qwen3TextEncoder(tmp_path / 'tiny', 8, 'float32')
    for prompt in ('', 'A red three', 'three, a red three, a red three'):
        cond = clip.encode_from_tokens(clip.tokenize(prompt))
        expected = encoder([prompt])
        assert cond.shape == expected.shape == (1, 8, 32)
        assert (cond - expected).norm() / expected.norm() <= 1e-4
    clip.tokenize('a red dog')
    clip.tokenize('a dog')
    said = [record.getMessage() for record in caplog.records if 'PixNerd' in record.getMessage()]
    assert said == [
        'PixNerd: the prompt has 9 tokens, and the text encoder reads the first 8',
        "PixNerd: the text encoder does not know the word 'dog'",
    ]
    # Saved with the model, it comes back with its words.
    saved = {name.removeprefix('pixnerd_qwen3.transformer.'): tensor for name, tensor in clip.get_sd().items()}
    again = load_text_encoder({name: tensor for name, tensor in saved.items() if not name.startswith('pixnerd_qwen3')})
    assert again.tokenize('a three') == clip.tokenize('a three')

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixnerd_plugin.models.conditioners import LabelConditioner, Qwen3TextEncoder
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore
from pixnerd_plugin.registry import MODELS

DATA = Path(__file__).parents[1] / 'data'
FOLDER = DATA / 'qwen3_tiny'
GOLDEN_PROMPTS = [
    'a photo of a cat',
    '',
    'steampunk laboratory, brass pipes, warm light ' * 6,
    '一只猫的照片',
]


def relative_error(value, reference):
    return float((value - reference).norm() / reference.norm())


class TestLabelConditioner:
    def test_numbers_and_names_become_ids(self):
        conditioner = LabelConditioner(3, ['tench, Tinca tinca', 'golden_retriever', 'cat'])
        cond = conditioner([0, '1', 'CAT', 'tinca tinca', 'Golden Retriever', 'tench, Tinca tinca'])
        assert cond.dtype == torch.long
        assert cond.tolist() == [0, 1, 2, 0, 1, 0]

    def test_null_is_one_past_the_last_class(self):
        assert LabelConditioner(10).null(3).tolist() == [10, 10, 10]

    def test_names_come_from_a_file_too(self, tmp_path):
        (tmp_path / 'names.txt').write_text('cat\n犬\n', encoding='utf-8')
        assert LabelConditioner(2, tmp_path / 'names.txt')(['犬', 'cat']).tolist() == [1, 0]

    def test_a_batch_gives_its_labels(self):
        cond = LabelConditioner(10).from_batch({'label': torch.tensor([3, 9], dtype=torch.int32)})
        assert cond.dtype == torch.long
        assert cond.tolist() == [3, 9]

    @pytest.mark.parametrize('label', [-1, 3, '3', 'dog', 'crane'])
    def test_unusable_labels_are_named(self, label):
        with pytest.raises(ValueError, match=str(label)):
            LabelConditioner(3, ['crane', 'cat', 'crane'])([label])

    def test_a_batch_out_of_range_or_without_labels_is_refused(self):
        with pytest.raises(ValueError, match=r'class 10 is out of range.*0 to 9'):
            LabelConditioner(10).from_batch({'label': torch.tensor([3, 10])})
        with pytest.raises(ValueError, match='no label'):
            LabelConditioner(10).from_batch({'text': ['a cat']})

    def test_names_must_match_the_number_of_classes(self):
        with pytest.raises(ValueError, match='2 class names were given for 3 classes'):
            LabelConditioner(3, ['cat', 'dog'])


@pytest.fixture(scope='module')
def golden():
    return load_file(DATA / 'qwen3_text.safetensors')


@pytest.fixture(scope='module')
def encoder():
    return MODELS.build(dict(type='Qwen3TextEncoder', model=str(FOLDER), max_length=12, dtype='float32'))


class TestQwen3TextEncoder:
    def test_tokens_and_embeddings_equal_the_release(self, encoder, golden):
        ids, mask = encoder.tokenize(GOLDEN_PROMPTS)
        assert torch.equal(ids, golden['input_ids'])
        assert torch.equal(mask, golden['attention_mask'])
        for value, reference in zip(encoder(GOLDEN_PROMPTS), golden['embeds.40'], strict=True):
            assert relative_error(value, reference) <= 1e-5

    def test_defaults_are_128_tokens_in_bfloat16(self, golden):
        encoder = Qwen3TextEncoder(FOLDER)
        embeds = encoder(['a photo of a cat', ''])
        assert embeds.shape == (2, 128, encoder.dim)
        assert embeds.dtype == torch.bfloat16
        # Attention is causal: the first tokens do not see how long the padding is.
        assert relative_error(embeds[0, :5].float(), golden['embeds.40'][0, :5]) < 0.02

    def test_rotary_frequencies_are_rounded_to_bfloat16(self, encoder):
        frequencies = encoder.encoder.module.rotary_emb.inv_freq
        assert frequencies.dtype == torch.float32
        assert torch.equal(frequencies, frequencies.bfloat16().float())
        assert not torch.equal(frequencies, 10000.0 ** (-torch.arange(0, 16, 2) / 16))

    def test_the_empty_prompt_is_the_same_everywhere(self, encoder, golden):
        null = encoder.null(2)
        assert relative_error(null[1], golden['embeds.40'][1]) <= 1e-5
        assert torch.equal(encoder(['']), null[:1])
        assert torch.equal(encoder(['a cat', '', '犬'])[1], null[0])

    def test_the_result_does_not_depend_on_the_batch(self, encoder):
        alone = encoder(['a cat'])[0]
        together = encoder(['', 'a cat', 'a much longer prompt than the other one'])[1]
        assert relative_error(together, alone) < 1e-6

    def test_results_do_not_share_memory_with_the_cache(self, encoder):
        encoder(['', '']).zero_()
        assert encoder.null(1).abs().max() > 0

    @pytest.mark.parametrize(
        'prompt', ['🐈‍⬛🌈', '窓辺で眠る猫', '고양이', 'Ω\u0301\t\n', '<|endoftext|>', ' ', '\x00']
    )
    def test_any_text_is_encoded(self, encoder, prompt):
        embeds = encoder([prompt])
        assert embeds.isfinite().all()
        assert not torch.equal(embeds, encoder.null(1)) or prompt == '<|endoftext|>'

    def test_what_exceeds_the_length_is_cut(self, encoder):
        prompt = 'brass pipes ' * 100
        assert encoder.tokenize([prompt])[1].sum() == 12
        assert torch.equal(encoder([prompt]), encoder([prompt + 'and a cat']))

    def test_a_batch_gives_its_text_or_its_precomputed_embeddings(self, encoder):
        embeds = encoder(['a cat', ''])
        assert torch.equal(encoder.from_batch({'text': ['a cat', '']}), embeds)
        given = encoder.from_batch({'text': ['other', 'other'], 'text_embeds': embeds.bfloat16()})
        assert torch.equal(given, embeds.bfloat16().float())
        with pytest.raises(ValueError, match=r'\(2, 3, 40\).*\(B, 12, 40\)'):
            encoder.from_batch({'text_embeds': embeds[:, :3]})
        with pytest.raises(ValueError, match='neither text nor text_embeds'):
            encoder.from_batch({'label': torch.zeros(2)})

    def test_precomputed_prompts_never_read_the_weights(self, encoder, tmp_path):
        store = TextEmbeddingStore(tmp_path)
        prompts = ['', 'a cat']
        store.write('part', prompts, encoder(prompts), {'model': 'qwen3_tiny', 'max_length': '12', 'dtype': 'float32'})
        other = Qwen3TextEncoder(FOLDER, 12, 'float32', precomputed=tmp_path)
        assert torch.equal(other.from_batch({'text_embeds': encoder(['a cat'])}), encoder(['a cat']))
        assert torch.equal(other.from_batch({'text': prompts}), encoder(prompts))
        assert torch.equal(other.null(2), encoder.null(2))
        assert other.encoder._module is None
        # What was not precomputed still is encoded.
        assert torch.equal(other(['a dog', '']), encoder(['a dog', '']))
        with pytest.raises(ValueError, match=r"'max_length': '12'.*'max_length': '13'"):
            Qwen3TextEncoder(FOLDER, 13, precomputed=tmp_path)
        with pytest.raises(FileNotFoundError, match='precompute_text'):
            Qwen3TextEncoder(FOLDER, 12, precomputed=tmp_path / 'nowhere')

    def test_it_is_frozen_and_outside_its_owner(self, encoder):
        owner = nn.Linear(2, 2)
        owner.conditioner = encoder
        embeds = encoder(['a cat'])
        assert not embeds.requires_grad
        assert not encoder.encoder.module.training
        assert set(owner.state_dict()) == {'weight', 'bias'}
        assert copy.deepcopy(owner).conditioner.encoder is encoder.encoder

    def test_autocast_and_the_random_stream_are_left_alone(self):
        torch.manual_seed(1)
        expected = torch.rand(2)
        torch.manual_seed(1)
        encoder = Qwen3TextEncoder(FOLDER, 12, 'float32')
        with torch.autocast('cpu', torch.bfloat16):
            embeds = encoder(['a cat'])
        assert torch.equal(embeds, encoder(['a cat']))
        assert torch.equal(torch.rand(2), expected)

    @pytest.mark.parametrize('prompts', ['a cat', [None], ['\ud83d']])
    def test_prompts_that_are_no_text_are_refused(self, encoder, prompts):
        with pytest.raises(ValueError, match='prompt'):
            encoder(prompts)

    def test_the_rotary_base_is_found_where_any_transformers_saves_it(self, tmp_path, encoder):
        embeds = []
        for name, base in {
            'four': {'rope_theta': 5e5},
            'five': {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
        }.items():
            folder = shutil.copytree(FOLDER, tmp_path / name)
            config = json.loads((folder / 'config.json').read_text())
            del config['rope_parameters']
            (folder / 'config.json').write_text(json.dumps({**config, **base}))
            embeds.append(Qwen3TextEncoder(folder, 12, 'float32')(['a photo of a cat']))
        assert torch.equal(*embeds)
        assert relative_error(embeds[0], encoder(['a photo of a cat'])) > 1e-3


class TestQwen3Folder:
    @pytest.fixture
    def folder(self, tmp_path):
        return shutil.copytree(FOLDER, tmp_path / 'qwen')

    def build(self, folder):
        return Qwen3TextEncoder(folder, 12, 'float32')

    @pytest.mark.parametrize('model', ['/no/such/folder', 'nowhere', 'no-such/model', 'a/b/c', '~/nowhere'])
    def test_a_missing_folder_is_named_with_the_fix(self, model):
        with pytest.raises(FileNotFoundError, match=f'{model}.*hf download') as error:
            self.build(model)
        assert '\n' not in str(error.value)

    @pytest.mark.parametrize(
        ('name', 'message'),
        [('config.json', 'config.json'), ('model.safetensors', 'model.safetensors'), ('merges.txt', 'tokenizer')],
    )
    def test_a_missing_file_is_named(self, folder, name, message):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            self.build(folder)

    def test_a_missing_part_of_the_weights_is_named(self, folder):
        index = {'weight_map': {'norm.weight': 'model-00002-of-00002.safetensors'}}
        (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
        with pytest.raises(FileNotFoundError, match='model-00002-of-00002'):
            self.build(folder)

    def test_another_kind_of_model_is_refused(self, folder):
        (folder / 'config.json').write_text('{"model_type": "llama"}')
        with pytest.raises(ValueError, match="'llama' model, not qwen3"):
            self.build(folder)

    def test_a_configuration_that_is_no_json_is_refused(self, folder):
        (folder / 'config.json').write_text('{')
        with pytest.raises(ValueError, match=r'config\.json is not'):
            self.build(folder)

    def test_truncated_weights_are_refused(self, folder):
        weights = folder / 'model.safetensors'
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(ValueError, match='do not load') as error:
            self.build(folder).null(1)
        assert '\n' not in str(error.value)

    def test_weights_that_do_not_fill_the_model_are_refused(self, folder):
        weights = load_file(folder / 'model.safetensors')
        del weights['norm.weight']
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
        with pytest.raises(ValueError, match=r'lack 1 tensors of Qwen3Model: norm\.weight'):
            self.build(folder).null(1)

    def test_weights_of_another_shape_are_refused(self, folder):
        weights = load_file(folder / 'model.safetensors')
        weights['norm.weight'] = torch.ones(41)
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
        with pytest.raises(ValueError, match='do not load') as error:
            self.build(folder).null(1)
        assert '\n' not in str(error.value)

    def test_weights_saved_with_a_language_model_head_load(self, folder):
        weights = {f'model.{name}': value for name, value in load_file(folder / 'model.safetensors').items()}
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
        assert torch.equal(self.build(folder)(['a cat']), self.build(FOLDER)(['a cat']))

    def test_an_unknown_dtype_is_refused(self):
        with pytest.raises(ValueError, match='int8'):
            Qwen3TextEncoder(FOLDER, dtype='int8')


@pytest.mark.parametrize('name', ['attn_implementation', '_attn_implementation', 'experts_implementation'])
def test_code_that_a_folder_names_is_not_fetched(tmp_path, name):
    folder = shutil.copytree(FOLDER, tmp_path / 'qwen3')
    config = json.loads((folder / 'config.json').read_text())
    for value in ('evil/kernel', 'flash_attention_2', {'': 'evil/kernel'}):
        (folder / 'config.json').write_text(json.dumps({**config, name: value}))
        with pytest.raises(ValueError, match=f"config.json: {name}=.* must be 'eager' or 'sdpa'"):
            Qwen3TextEncoder(folder)
    (folder / 'config.json').write_text(json.dumps({**config, name: 'eager'}))
    assert Qwen3TextEncoder(folder).dim == config['hidden_size']


@pytest.mark.parametrize(
    ('file', 'name', 'value'),
    [
        ('config.json', 'num_hidden_layers', 10**8),
        ('config.json', 'rms_norm_eps', 'x'),
        ('config.json', 'head_dim', 0),
        ('config.json', 'num_attention_heads', 0),
        ('config.json', 'hidden_act', 'os.system'),
        ('config.json', 'rope_scaling', {'type': 'x'}),
        ('tokenizer_config.json', 'added_tokens_decoder', {'x': 1}),
        ('tokenizer_config.json', 'tokenizer_class', 'os.system'),
    ],
)
def test_settings_that_transformers_stumbles_over_are_one_line(tmp_path, file, name, value):
    folder = shutil.copytree(FOLDER, tmp_path / 'qwen3')
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, name: value}))
    with pytest.raises(ValueError, match=f'in {folder} do(es)? not load') as caught:
        Qwen3TextEncoder(folder)(['x'])
    assert '\n' not in str(caught.value)

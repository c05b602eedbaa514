"""A checkpoint file to pictures, on networks with the published layout and tiny weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.images import to_uint8
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, HeunFlowSampler
from tests.golden import DATA, network

NAMES = [*'abcdefgh', 'cat, tom', 'dog']
SAMPLING = dict(type='AdamsFlowSampler', num_steps=3, order=3, guidance_scale=2.0, timeshift=1.5)
QWEN3 = DATA / 'qwen3_tiny'


def save(folder, name, **more):
    net = network(name)
    metadata = dict(architecture=net.architecture(), sampling=SAMPLING, **more)
    save_file(net.state_dict(), folder / f'{name}.safetensors', {'pixnerd': json.dumps(metadata)})
    return folder / f'{name}.safetensors'


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    return save(tmp_path_factory.mktemp('net'), 'c2i_tiny', resolution=8, class_names=NAMES)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    return save(tmp_path_factory.mktemp('net'), 't2i_tiny', resolution=32)


@pytest.fixture(scope='module')
def pipe(classes):
    return load_pipeline(classes, device='cpu')


@pytest.fixture(scope='module')
def text_pipe(texts):
    return load_pipeline(texts, QWEN3, 'cpu')


def pixels(pictures):
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def test_everything_is_as_the_file_says(pipe):
    assert pipe.size == (8, 8)
    assert pipe.class_names == NAMES
    assert not pipe.is_text
    assert not pipe.net.training
    assert {**SAMPLING, 'guidance_interval': (0.0, 1.0)}.items() <= pipe.sampler.config().items()


def test_a_picture_is_what_the_sampler_makes_of_its_seed_and_class(pipe):
    (picture,) = pipe(labels=['dog'], seeds=7)
    noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(7))[None]
    image = AdamsFlowSampler(3, 3, 2.0, (0.0, 1.0), 1.5).sample(
        network('c2i_tiny'), noise, torch.tensor([9]), torch.tensor([10])
    )
    assert picture.size == (8, 8)
    assert (np.asarray(picture) == to_uint8(image)[0]).all()


def test_labels_are_names_numbers_or_one_alone(pipe):
    by_name = pixels(pipe(labels=['CAT', 'tom', 'cat, tom', '8', 8, np.int64(8)], seeds=[3] * 6))
    assert (by_name == by_name[0]).all()
    for alone in ('cat', 8):
        assert (pixels(pipe(labels=alone, seeds=3)) == by_name[0]).all()


def test_a_seed_counts_up_and_no_picture_depends_on_its_batch(pipe):
    wanted = ['cat', 0, 'dog', 3, 4]
    counted = pixels(pipe(labels=wanted, seeds=5, batch_size=2))
    listed = pixels(pipe(labels=wanted, seeds=[5, 6, 7, 8, 9], batch_size=5))
    alone = pixels([pipe(labels=[label], seeds=5 + index)[0] for index, label in enumerate(wanted)])
    # Other batch sizes may round otherwise, which is at most one in 255.
    assert np.abs(counted - listed).max() <= 1
    assert np.abs(counted - alone).max() <= 1
    assert len(np.unique(counted, axis=0)) == 5


def test_sizes_are_one_number_or_two_and_a_grid_keeps_the_tokens(pipe):
    assert pipe(labels=[1], size=12)[0].size == (12, 12)
    assert pipe(labels=[1], size=(8, 12))[0].size == (12, 8)  # PIL says width first
    assert pipe(labels=[1], size=(16, 16), token_grid=(2, 2))[0].size == (16, 16)


def test_settings_take_the_place_of_the_files_in_this_call_alone(pipe):
    usual = pixels(pipe(labels=[1]))
    seen = []
    pipe(labels=[1, 2], num_steps=5, callback=seen.append)
    assert [step.num_steps for step in seen] == [5] * 5
    for changed in (dict(guidance_scale=5.0), dict(order=1), dict(timeshift=3.0), dict(type='HeunFlowSampler')):
        assert (pixels(pipe(labels=[1], **changed)) != usual).any(), changed
    assert (pixels(pipe(labels=[1])) == usual).all()
    heun = HeunFlowSampler(3, 2.0, (0.0, 1.0), 1.5)
    assert pipe.sampler.replace(type='HeunFlowSampler').config() == heun.config()


def test_a_file_that_says_nothing_is_sampled_as_published():
    pipe = load_pipeline(DATA / 'c2i_tiny_lightning.ckpt', device='cpu')
    assert pipe.size == (64, 64)
    assert (type(pipe.sampler).__name__, pipe.sampler.num_steps) == ('EulerFlowSampler', 100)
    assert pipe.class_names is None
    assert pipe(labels=[9], size=8, num_steps=1)[0].size == (8, 8)


def test_averaged_and_raw_weights_are_told_apart():
    ema, raw = (load_pipeline(DATA / 'v0.1/iter_4.pth', device='cpu', weights=name) for name in ('ema', 'raw'))
    assert any((a != b).any() for a, b in zip(ema.net.parameters(), raw.net.parameters(), strict=True))


def test_the_network_computes_in_the_dtype_asked_for(classes, pipe):
    half = load_pipeline(classes, device='cpu', dtype='bfloat16')
    assert {p.dtype for p in half.net.parameters()} == {torch.bfloat16}
    assert load_pipeline(classes, device='cpu', dtype=torch.bfloat16).net.label_embed.weight.dtype == torch.bfloat16
    difference = np.abs(pixels(half(labels=[1])) - pixels(pipe(labels=[1])))
    assert 0 < difference.max() < 64


def test_class_names_may_be_given(classes, tmp_path):
    (tmp_path / 'names.txt').write_text('\n'.join(f'digit {i}' for i in range(10)))
    pipe = load_pipeline(classes, device='cpu', class_names=tmp_path / 'names.txt')
    assert (pixels(pipe(labels=['digit 4'])) == pixels(pipe(labels=[4]))).all()


def test_an_adapter_is_added_by_its_strength(classes, pipe, tmp_path):
    torch.manual_seed(0)
    name = 'diffusion_model.blocks.0.attn.proj'
    tensors = {f'{name}.lora_A.weight': torch.randn(2, 48), f'{name}.lora_B.weight': torch.randn(48, 2)}
    save_file(tensors, tmp_path / 'lora.safetensors')
    changed = load_pipeline(classes, device='cpu', lora=tmp_path / 'lora.safetensors', lora_strength=0.5)
    added = tensors[f'{name}.lora_B.weight'] @ tensors[f'{name}.lora_A.weight'] / 2
    own = pipe.net.get_parameter('blocks.0.attn.proj.weight')
    torch.testing.assert_close(changed.net.get_parameter('blocks.0.attn.proj.weight'), own + added)


def test_prompts_give_pictures_each_its_own(text_pipe):
    assert text_pipe.is_text
    assert text_pipe.class_names is None
    prompts = ['a photo of a cat', '一只猫的照片', 'a photo of a cat']
    pictures = pixels(text_pipe(prompts=prompts, seeds=[0, 0, 1], batch_size=2))
    assert pictures.shape == (3, 32, 32, 3)
    assert len(np.unique(pictures, axis=0)) == 3
    assert np.abs(pixels(text_pipe(prompts=prompts[0])) - pictures[0]).max() <= 1
    led_away = pixels(text_pipe(prompts=prompts[0], negative_prompt='blurred'))
    assert (led_away != pictures[0]).any()


def one_line(mistake, match):
    with pytest.raises(ValueError, match=match) as caught:
        mistake()
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (dict(), 'draws classes, not prompts; give labels'),
        (dict(prompts=['a cat']), 'draws classes, not prompts; give labels'),
        (dict(labels=[1], prompts=['a cat']), 'draws classes'),
        (dict(labels=['nine']), "'nine' is unknown"),
        (dict(labels=[0, 10]), 'class 10 is out of range: this model has classes 0 to 9'),
        (dict(labels=[-1]), 'class -1 is out of range'),
        (dict(labels=[1], seeds=[0, 1]), '1 pictures are asked for with 2 seeds'),
        (dict(labels=[1], seeds=[2**63]), f'seed {2**63} must be'),
        (dict(labels=[1], seeds=-1), 'seed -1 must be'),
        (dict(labels=[1], seeds=['a']), "seed 'a' must be"),
        (dict(labels=[1], size=9), '9x9.*multiples of patch_size=4'),
        (dict(labels=[1], size=0), 'size=0 must be'),
        (dict(labels=[1], size=(8, 8, 8)), r'size=\(8, 8, 8\) must be'),
        (dict(labels=[1], token_grid=(0, 4)), r'token_grid=\(0, 4\) must be'),
        (dict(labels=[1], token_grid=(3, 2)), 'multiples of the token grid 3x2'),
        (dict(labels=[1], batch_size=0), 'batch_size=0'),
        (dict(labels=[1], steps=5), 'AdamsFlowSampler has no setting steps; it has num_steps'),
        (dict(labels=[1], num_steps=0), 'num_steps=0'),
        (dict(labels=[1], order=5), 'order=5'),
        (dict(labels=[1], type='Magic'), "sampler 'Magic' is not known; use one of AdamsFlowSampler"),
        (dict(labels=[1], type='PixNerdDiT'), "sampler 'PixNerdDiT' is not known"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_drawn(pipe, arguments, match):
    seen = []
    one_line(lambda: pipe(**arguments, callback=seen.append), match)
    assert not seen


def test_mistakes_with_prompts(texts, text_pipe):
    one_line(lambda: text_pipe(labels=[1]), 'draws prompts, not classes; give prompts')
    one_line(lambda: text_pipe(prompts=['a cat', 3]), 'prompt 3 is no text')
    one_line(lambda: load_pipeline(texts, device='cpu')(prompts=['a cat']), 'give its text encoder')


def test_the_network_and_its_sampler_say_the_same_of_a_grid_and_a_class(pipe):
    x, null = torch.zeros(1, 3, 8, 8), torch.tensor([10])
    for kwargs, match in (
        (dict(token_grid=(0, 4)), r'token_grid=\(0, 4\) must be'),
        (dict(cond=torch.tensor([11])), 'class'),
        (dict(cond=torch.tensor([-1])), 'class'),
    ):
        cond = kwargs.pop('cond', torch.tensor([1]))
        said = []
        for call in (
            lambda: pipe.net(x, torch.zeros(1), cond, **kwargs),  # noqa: B023
            lambda: pipe.net.encode(x, torch.zeros(1), cond, **kwargs),  # noqa: B023
            lambda: pipe.sampler.sample(pipe.net, x, cond, null, **kwargs),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=match) as caught:
                call()
            said.append(str(caught.value))
        assert len(set(said)) == 1
        assert '\n' not in said[0]


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (dict(device='tpu'), "device 'tpu' is not known"),
        (dict(device='meta'), "device 'meta': this machine has no such usable device"),
        (dict(device='cuda:99'), "device 'cuda:99': this machine has no such usable device"),
        (dict(dtype='float8'), "dtype 'float8' is not known; use one of float32, bfloat16, float16"),
        (dict(dtype=torch.int8), "dtype 'torch.int8' is not known"),
        (dict(weights='best'), "weights='best' is not known"),
        (dict(class_names=['one']), '1 class names were given for 10 classes'),
        (dict(text_encoder=QWEN3), 'draws classes and takes no text_encoder'),
    ],
)
def test_what_cannot_be_loaded_is_one_line(classes, arguments, match):
    one_line(lambda: load_pipeline(classes, **arguments), match)


@pytest.mark.parametrize(('has_bfloat16', 'dtype'), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_where_the_cpu_has_instructions_for_it(classes, monkeypatch, caplog, has_bfloat16, dtype):
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: has_bfloat16)
    with caplog.at_level('INFO'):
        pipe = load_pipeline(classes, device='cpu', dtype='auto')
    assert pipe.net.label_embed.weight.dtype == dtype
    assert [record.getMessage() for record in caplog.records] == [
        f'{classes} computes in {str(dtype).removeprefix("torch.")} on cpu'
    ]


def test_a_missing_file_is_named(texts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no\.safetensors'):
        load_pipeline(tmp_path / 'no.safetensors')
    with pytest.raises((FileNotFoundError, ValueError), match='nowhere'):
        load_pipeline(texts, 'nowhere')


def test_a_text_encoder_of_another_width_is_refused(tmp_path, texts):
    wide = tmp_path / 'net.safetensors'
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, text_dim=24, text_depth=1))
    save_file(net.state_dict(), wide, {'pixnerd': json.dumps(dict(architecture=net.architecture()))})
    one_line(lambda: load_pipeline(wide, QWEN3, 'cpu'), 'width 40.*24')


def test_a_network_that_overflows_says_what_to_try(classes):
    pipe = load_pipeline(classes, device='cpu')
    with torch.no_grad():
        pipe.net.head.proj.bias.fill_(float('nan'))
    one_line(lambda: pipe(labels=[1]), 'NaN or infinity; try float32')

"""tools/sample.py as a user calls it."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixnerd_plugin.registry import MODELS
from tests.training import ROOT


def save(path, **kwargs):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, head=head, **kwargs))
    torch.nn.init.normal_(net.head.proj.weight)
    metadata = dict(
        architecture=net.architecture(),
        sampling=dict(type='AdamsFlowSampler', num_steps=3, guidance_scale=2.0),
        resolution=8,
    )
    if net.text_dim is None:
        metadata['class_names'] = ['zero', 'one', 'two']
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(metadata)})
    return path


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    return save(tmp_path_factory.mktemp('weights') / 'classes.safetensors', num_classes=3)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    return save(tmp_path_factory.mktemp('weights') / 'texts.safetensors', text_dim=40, text_length=12, text_depth=1)


@pytest.fixture
def sample(capsys, monkeypatch):
    """Run the command in this process: its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['sample.py', *map(str, arguments), '--device', 'cpu'])
        code = None
        try:
            runpy.run_path(str(ROOT / 'tools/sample.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run


def pixels(path):
    return np.asarray(Image.open(path))


def test_classes_by_name_and_number_with_grid_animation_and_decoding(sample, classes, tmp_path):
    out = tmp_path / 'together'
    options = ['--num', 2, '--seed', 5, '--grid', '--gif', '--decode', '20x12', '--save-field']
    code, _ = sample(classes, '--class-label', 'one', 2, *options, '--out', out)
    assert code is None
    assert {path.name for path in out.iterdir()} == {
        *(
            f'{label}_seed{seed}{suffix}.png'
            for label in ('one', '2')
            for seed in (5, 6)
            for suffix in ('', '_decoded')
        ),
        'one_seed5.safetensors',
        'grid.png',
        'trajectory.gif',
    }
    with Image.open(out / 'one_seed5.png') as image:
        parameters = json.loads(image.info['pixnerd'])
    assert parameters['seed'] == 5
    assert parameters['condition'] == 'one'
    assert parameters['sampler']['num_steps'] == 3
    assert pixels(out / 'one_seed5_decoded.png').shape == (20, 12, 3)
    with Image.open(out / 'trajectory.gif') as animation:
        assert animation.n_frames == 4

    # A picture depends on its own seed alone, not on the batch it is drawn in.
    alone = tmp_path / 'alone'
    assert sample(classes, '--class-label', 1, '--seed', 6, '--out', alone)[0] is None
    assert np.abs(pixels(alone / '1_seed6.png').astype(int) - pixels(out / 'one_seed6.png')).max() <= 1


def test_patches_are_joined_as_far_as_asked(sample, classes, tmp_path):
    def draw(*blend):
        out = tmp_path / '_'.join(map(str, ['blend', *blend]))
        options = ['--size', '32x32', '--token-grid', '2x2', '--decode', '32x32', '--interval', '0,1']
        assert sample(classes, '--class-label', 1, *options, *blend, '--out', out)[0] is None
        with Image.open(out / '1_seed0.png') as image:
            parameters = json.loads(image.info['pixnerd'])
        return *(pixels(out / name).astype(int) for name in ('1_seed0.png', '1_seed0_decoded.png')), parameters

    by_default, hard, joined = draw(), draw('--blend', 0), draw('--blend', 0.5)
    # Sampled with hard borders, as published, and decoded with joined ones; what is asked for holds for both.
    assert (by_default[0] == hard[0]).all()
    differences = [np.abs(sampled - decoded).mean() for sampled, decoded, _ in (by_default, hard, joined)]
    assert differences[0] > 5 * max(differences[1:])
    assert np.abs(joined[0] - hard[0]).mean() > 5 * differences[2]
    assert 'blend' not in by_default[2]
    assert [parameters['blend'] for *_, parameters in (hard, joined)] == [0, 0.5]


def test_classes_and_seeds_as_people_write_them(sample, classes, tmp_path):
    def names(*arguments):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        code, printed = sample(classes, *arguments, '--steps', 1, '--out', out)
        assert code is None
        found = sorted(path.name.removesuffix('.png') for path in out.iterdir())
        # It says how many it wrote.
        assert f'{len(found)} pictures of ' in printed
        return found

    assert names('--class-label', 'one,two') == ['one_seed0', 'two_seed0']
    assert names('--class-label', 'one, two', '0') == ['0_seed0', 'one_seed0', 'two_seed0']
    assert names('--class-label', 'one', '--seed', 1, 5, 9) == ['one_seed1', 'one_seed5', 'one_seed9']
    assert names('--class-label', 'one', '--seed', '1,5') == ['one_seed1', 'one_seed5']
    # The same class again goes on with the next seed, whatever it is called.
    assert names('--class-label', 'one', '1', 'ONE') == ['1_seed1', 'ONE_seed2', 'one_seed0']
    assert names('--class-label', 'one', 'one', '--num', 2, '--seed', 3) == [f'one_seed{n}' for n in (3, 4, 5, 6)]
    assert names('--class-label', 'one', '--size', 12) == ['one_seed0']
    assert pixels(tmp_path / '6/one_seed0.png').shape == (12, 12, 3)


def test_names_of_classes_that_files_cannot_tell_apart(sample, classes, tmp_path):
    (tmp_path / 'names.txt').write_text('a-b\na b\na_b_1')
    arguments = ('--class-names', tmp_path / 'names.txt', '--class-label', 'a-b', 'a b', 'a_b_1', '--steps', 1)
    assert sample(classes, *arguments, '--out', tmp_path / 'out')[0] is None
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        f'{name}_seed0.png' for name in ('a_b', 'a_b_1', 'a_b_1_2')
    }


def test_prompts_from_a_file_are_resumed(sample, texts, tmp_path):
    prompts, out = tmp_path / 'prompts.txt', tmp_path / 'out'
    prompts.write_text('a photo of a cat\n\n一只猫的照片 🐈\n' + 'very long ' * 100 + '\n', encoding='utf-8')
    arguments = [texts, '--prompts', prompts, '--text-encoder', ROOT / 'tests/data/qwen3_tiny', '--out', out]
    assert sample(*arguments, '--size', '8x12', '--negative', 'blurred')[0] is None
    assert [path.name for path in sorted(out.iterdir())] == [f'{i:05d}_seed0.png' for i in range(3)]
    assert (pixels(out / '00000_seed0.png') != pixels(out / '00001_seed0.png')).any()
    kept = (out / '00000_seed0.png').stat().st_mtime_ns
    (out / '00001_seed0.png').unlink()
    _, printed = sample(*arguments, '--size', '8x12', '--negative', 'blurred')
    assert '2 of 3 pictures are there already' in printed
    assert (out / '00000_seed0.png').stat().st_mtime_ns == kept
    # Nothing is kept that was cut short, lacks what is now asked for, or is of other weights under the same name.
    (out / '00002_seed0.png').write_bytes(b'')
    _, printed = sample(*arguments, '--size', '8x12', '--negative', 'blurred', '--decode', '16x16')
    assert 'already' not in printed
    assert pixels(out / '00002_seed0_decoded.png').shape == (16, 16, 3)
    assert (out / '00001_seed0.png').is_file()
    other = {name: tensor + 0.1 for name, tensor in load_file(texts).items()}
    with safe_open(str(texts), 'pt') as file:
        save_file(other, tmp_path / texts.name, file.metadata())
    arguments[0] = tmp_path / texts.name
    _, printed = sample(*arguments, '--size', '8x12', '--negative', 'blurred', '--decode', '16x16')
    assert 'already' not in printed


@pytest.mark.parametrize(('content', 'message'), [(b'\n \n', 'no prompts'), (b'fine\ncaf\xe9', 'byte 8 is not UTF-8')])
def test_a_file_that_holds_no_prompts_is_named(sample, texts, tmp_path, content, message):
    (tmp_path / 'prompts.txt').write_bytes(content)
    arguments = ('--prompts', tmp_path / 'prompts.txt', '--text-encoder', ROOT / 'tests/data/qwen3_tiny')
    code, _ = sample(texts, *arguments, '--out', tmp_path / 'out')
    assert 'prompts.txt' in code
    assert message in code
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['CLASSES'], 'give one of'),
        (['CLASSES', '--class-label', '3'], 'classes 0 to 2'),
        (['CLASSES', '--class-label', 'nine'], "'nine'"),
        (['CLASSES', '--class-label', 'one,nine'], "'nine'"),
        (['CLASSES', '--class-label', 'one', '3', '--batch-size', '1'], 'classes 0 to 2'),
        (['CLASSES', '--class-label', 'one', '--seed', 'x'], 'seeds are whole numbers'),
        (['CLASSES', '--class-label', 'one', '--seed', '-1'], 'seed -1'),
        (['CLASSES', '--class-label', 'one', '--seed', '1', '5', '1'], 'given twice'),
        (['CLASSES', '--class-label', 'one', '--seed', '1', '5', '--num', '2'], '--num 2'),
        (['CLASSES', '--class-label', 'one', '1', '--seed', '1', '5'], "'1' is asked for twice"),
        (['CLASSES', '--class-label', 'one', '--order', '3', '--sampler', 'heun'], '--sampler adams'),
        (['CLASSES', '--class-label', 'one', '--token-grid', '3x2'], '3x2'),
        (['TEXTS', '--prompt', 'a cat', ' ', '--text-encoder', 'QWEN3'], 'empty'),
        (['TEXTS', '--prompt', 'a cat', '--size', '9', '--text-encoder', 'QWEN3'], '9x9'),
        (['CLASSES', '--class-label', '1', '--size', '9x8'], '9x8'),
        (['CLASSES', '--class-label', '1', '--size', '9x8', '--token-grid', '2x2'], '2x2'),
        (['CLASSES', '--prompt', 'a cat'], 'draws classes'),
        (['CLASSES', '--class-label', '1', '--region', '0,0,4,4'], '--decode'),
        (['CLASSES', '--class-label', '1', '--steps', '0'], 'num_steps=0'),
        (['CLASSES', '--class-label', '1', '--planned', '--interval', '0,1'], 'leave out --timeshift and --interval'),
        (['CLASSES', '--class-label', '1', '--blend', '2'], 'blend=2.0 must be from 0'),
        (['missing.safetensors', '--class-label', '1'], 'missing.safetensors'),
        (['TEXTS', '--class-label', '1'], 'draws prompts'),
        (['TEXTS', '--prompt', 'a cat'], '--text-encoder'),
        (['TEXTS', '--prompt', 'a cat', '--text-encoder', 'nowhere'], 'nowhere'),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_behind(sample, classes, texts, tmp_path, arguments, message):
    files = dict(CLASSES=str(classes), TEXTS=str(texts), QWEN3=str(ROOT / 'tests/data/qwen3_tiny'))
    code, _ = sample(*[files.get(argument, argument) for argument in arguments], '--out', tmp_path / 'out')
    # What sys.exit is given goes to stderr, with exit code 1.
    assert isinstance(code, str)
    assert '\n' not in code
    assert message in code
    assert not (tmp_path / 'out').exists()


def test_an_adapter_changes_the_picture_by_its_strength(sample, classes, tmp_path):
    torch.manual_seed(1)
    adapter = tmp_path / 'adapter.safetensors'
    name = 'diffusion_model.blocks.0.attn.proj'
    save_file({f'{name}.lora_A.weight': torch.randn(2, 16), f'{name}.lora_B.weight': torch.randn(16, 2)}, adapter)
    pictures = {}
    for strength in ('none', '0', '1', '2'):
        lora = [] if strength == 'none' else ['--lora', f'{adapter}:{strength}']
        assert sample(classes, '--class-label', 1, *lora, '--out', tmp_path / strength)[0] is None
        pictures[strength] = pixels(tmp_path / strength / '1_seed0.png')
    assert (pictures['0'] == pictures['none']).all()
    assert (pictures['1'] != pictures['none']).any()
    assert (pictures['2'] != pictures['1']).any()
    code, _ = sample(classes, '--class-label', 1, '--lora', tmp_path / 'no.safetensors', '--out', tmp_path / 'x')
    assert 'no.safetensors' in code


def test_auto_says_what_it_computes_in(sample, classes, tmp_path):
    code, out = sample(classes, '--class-label', 1, '--dtype', 'auto', '--pack', '--steps', 1, '--out', tmp_path)
    assert code is None
    assert re.search(r'^computing in (bfloat16|float32) on cpu$', out, re.MULTILINE)


def test_ways_of_guiding(sample, classes, tmp_path):
    def draw(name, *arguments):
        out = tmp_path / name
        code, _ = sample(classes, '--class-label', 1, '--guidance', 3, '--interval', '0,1', *arguments, '--out', out)
        assert code is None
        with Image.open(out / '1_seed0.png') as image:
            return json.loads(image.info['pixnerd']), np.asarray(image).copy()

    plain, picture = draw('cfg')
    assert 'guidance' not in plain['sampler']
    described, other = draw('apg', '--guidance-type', 'apg', '--guidance-options', 'eta=0.5', 'norm_threshold=1')
    expected = dict(type='AdaptiveProjectedGuidance', eta=0.5, norm_threshold=1, momentum=0.0)
    assert described['sampler']['guidance'] == expected
    assert (other != picture).any()
    described, _ = draw('auto', '--guidance-type', 'auto', '--guidance-network', classes)
    assert described['guidance_network'] == classes.name


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--guidance-type', 'auto'], 'go together'),
        (['--guidance-network', 'weak.pth'], 'go together'),
        (['--guidance-type', 'auto', '--guidance-network', 'nowhere.pth'], 'nowhere.pth does not exist'),
        (['--guidance-options', 'eta=1'], 'those of a --guidance-type'),
        (['--guidance-type', 'apg', '--guidance-options', 'beta=1'], 'has eta, norm_threshold, momentum'),
        (['--guidance-type', 'apg', '--guidance-options', 'eta=much'], 'not KEY=VALUE'),
        (['--guidance-type', 'cfg-zero-star', '--guidance-options', 'zero_steps=-1'], 'zero_steps=-1 must be'),
    ],
)
def test_ways_of_guiding_that_do_not_fit(sample, classes, tmp_path, arguments, message):
    code, _ = sample(classes, '--class-label', 1, *arguments, '--out', tmp_path)
    assert message in str(code)

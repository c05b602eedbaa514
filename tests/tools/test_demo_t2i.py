"""The two ends of `make demo` around a training of two steps, and the study of what it trains."""

import importlib
import json
import re
import runpy
import shutil
import sys
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from mmengine.runner import Runner
from PIL import Image

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.datasets.digit_scenes import (
    COLOURS,
    COUNTS,
    DIGITS,
    PLURALS,
    is_new_background_of,
    is_new_colour_of,
    is_new_count,
    is_new_pair,
)
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.evaluation.classifier import read_description
from pixnerd_plugin.evaluation.digit_reader import read_digits
from tests.captions import check_caption
from tests.training import ROOT

CONFIG = """
_base_ = '{root}/mm_configs/pixnerd_t2i_digits.py'
model = dict(
    backbone=dict(dim=16, depth=1, num_heads=2, mlp_hidden=16, text_dim=16, head=dict(width=4, depth=1)),
    conditioner=dict(model='{folder}/text_encoder', precomputed='{folder}/text'),
    loss=dict(dim=16, projector_dim=16, align_layer=1, teacher=dict(weights='{folder}/teacher.safetensors')),
    sampler=dict(num_steps=2),
)
text_embeddings = '{folder}/text'
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        num=12,
        pipeline=[
            dict(type='LoadTextEmbedding', folder=text_embeddings),
            dict(type='PackInputs', keys=('text_embeds',)),
        ],
    ),
)
train_cfg = dict(max_iters=2)
default_hooks = dict(logger=dict(interval=1))
custom_hooks = []
"""


def run_tool(tool, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        patch.syspath_prepend(str(ROOT / 'tools'))
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')


@pytest.fixture(scope='module')
def run():
    return partial(run_tool, 'demo_t2i.py')


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp('t2i')
    (folder / 'config.py').write_text(CONFIG.format(root=ROOT, folder=folder))
    run('prepare', '--config', folder / 'config.py', '--work-dir', folder, '--teacher-steps', 2)
    config = load_config(folder / 'config.py')
    config.work_dir, config.experiment_name = str(folder), 'test_demo_t2i'
    Runner.from_cfg(config).train()
    return folder


def test_it_ends_with_the_shares_of_prompts_followed(work_dir, run, capsys):
    run('draw', '--work-dir', work_dir, '--per-task', 1)
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r'prompts followed: \d+\.\d % seen, \d+\.\d % unseen', lines[-1])
    assert lines[-2].startswith('unseen: single object ')
    for name in ('sheet.png', 'loss.png'):
        assert np.asarray(Image.open(work_dir / name)).std() > 0


def test_stars_of_the_sheet_are_at_what_training_never_shows(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    sheet = runpy.run_path(str(ROOT / 'tools/demo_t2i.py'))['SHEET']
    prompts = [(prompt, int(size[0] > size[1])) for size, row in sheet for prompt in row]
    assert len(prompts) == 15
    for prompt, axis in prompts:
        assert is_unseen(prompt.removesuffix(' *'), axis) == prompt.endswith(' *'), prompt
        check_caption(prompt.removesuffix(' *'))


def is_unseen(prompt, axis):
    """By the rules of `digit_scenes`, read off the words."""
    said, _, background = prompt.partition(' on ')
    words = said.split()
    colours = [word for word in words if word in COLOURS]
    if words[0] in COUNTS.values():
        (count,) = (number for number, word in COUNTS.items() if word == words[0])
        value = next(PLURALS.index(word) for word in words if word in PLURALS)
        return is_new_count(count, value) or any(is_new_colour_of(value, colour) for colour in colours)
    values = [DIGITS.index(word) for word in words if word in DIGITS]
    if any(is_new_colour_of(value, colour) for value, colour in zip(values, colours, strict=False)):
        return True
    if len(values) == 1:
        return is_new_background_of(values[0], background or 'black')
    if 'right' in words or 'below' in words:
        values.reverse()
    return any(is_new_pair(one, other, axis) for one, other in combinations(values, 2))


def test_the_checkpoint_draws_prompts_without_naming_its_text_encoder(work_dir):
    pipe = load_pipeline(work_dir / 'iter_2.pth', device='cpu')
    (image,) = pipe(prompts=['a red three'], size=(32, 64))
    assert image.size == (64, 32)
    with pytest.warns(UserWarning, match="does not know 'dog'"):
        pipe(prompts=['a red dog'])


@pytest.fixture(scope='module')
def demo_teacher():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        yield importlib.import_module('demo_teacher')


def test_the_teacher_is_told_what_its_pictures_show_and_nothing_held_out(demo_teacher):
    pictures, labels = demo_teacher.labelled(dict(type='CaptionedDigits', num=300, scale=2))
    _, colours, backgrounds = demo_teacher.groups()
    assert pictures.shape[1:] == (3, 32, 32)
    assert len(pictures) > 60
    right = 0
    for picture, shares in zip(pictures, labels, strict=True):
        value, colour, background = (part.nonzero().item() for part in shares.split([10, 6, 4]))
        assert shares.sum() == 1
        ground, found = read_digits(picture.permute(1, 2, 0).numpy())
        right += ground == backgrounds[background] and {(one.value, one.colour) for one in found} == {
            (value, colours[colour])
        }
        assert not is_new_colour_of(value, colours[colour])
        held_out = is_new_background_of(value, ground) if len(found) == 1 else is_new_count(len(found), value)
        assert not held_out
    assert right >= 0.97 * len(pictures)  # a few scans are hard to read


def test_a_teacher_learns_all_three_kinds_of_names(demo_teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_teacher, 'PICTURES', 2000)
    monkeypatch.setattr(demo_teacher, 'TEST_PICTURES', 400)
    demo_teacher.write_teacher(tmp_path / 'teacher.safetensors', dict(type='CaptionedDigits'), 150)
    shares = read_description(tmp_path / 'teacher.safetensors')
    assert len(shares['class_names']) == 20
    # By chance, all three are right in one of 240 pictures.
    assert shares['accuracy'] > 0.1
    assert f'in {100 * shares["accuracy"]:.1f} % of pictures of new scans' in capsys.readouterr().out


@pytest.mark.parametrize('damage', [b'', b'\0' * 100, 'cut', 'noise'])
def test_a_damaged_teacher_is_named_and_made_anew(demo_teacher, work_dir, tmp_path, capsys, damage):
    good = (work_dir / 'teacher.safetensors').read_bytes()
    path = tmp_path / 'teacher.safetensors'
    assert not demo_teacher.is_ready(path)
    path.write_bytes(good)
    assert demo_teacher.is_ready(path)
    assert capsys.readouterr().out == ''
    path.write_bytes({'cut': good[:-4000], 'noise': good[:-4000] + b'\xff' * 4000}.get(damage, damage))
    assert not demo_teacher.is_ready(path)
    assert capsys.readouterr().out.endswith('; a new one takes its place\n')


def test_training_aligns_with_the_teacher(work_dir):
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(line['loss_repa'] > 0 for line in lines)
    assert len(lines) == 2


def test_preparing_again_keeps_what_fits_and_replaces_what_does_not(work_dir, run, tmp_path, capsys):
    teacher = (work_dir / 'teacher.safetensors').read_bytes()
    run('prepare', '--config', work_dir / 'config.py', '--work-dir', work_dir)
    assert ' 0 of them new' in capsys.readouterr().out
    assert (work_dir / 'teacher.safetensors').read_bytes() == teacher
    other = tmp_path / 'other'
    for name in ('text_encoder', 'text'):
        shutil.copytree(work_dir / name, other / name)
    (other / 'text_encoder/tokenizer.json').write_text('{}')  # of an earlier version, say
    run('prepare', '--config', work_dir / 'config.py', '--work-dir', other)
    assert ' 0 of them new' not in capsys.readouterr().out
    assert (other / 'text_encoder/tokenizer.json').read_bytes() == (
        work_dir / 'text_encoder/tokenizer.json'
    ).read_bytes()


def test_preparing_does_not_replace_the_encoder_of_a_trained_network(work_dir, run, tmp_path):
    shutil.copytree(work_dir / 'text_encoder', tmp_path / 'text_encoder')
    shutil.copy(work_dir / 'iter_2.pth', tmp_path)
    (tmp_path / 'text_encoder/tokenizer.json').write_text('{}')
    with pytest.raises(SystemExit, match='holds a run that was trained with another text encoder'):
        run('prepare', '--config', work_dir / 'config.py', '--work-dir', tmp_path)
    assert (tmp_path / 'text_encoder/tokenizer.json').read_text() == '{}'


def test_preparing_does_not_add_a_teacher_to_a_run_without_one(work_dir, run, tmp_path):
    for name in ('text_encoder', 'text'):
        shutil.copytree(work_dir / name, tmp_path / name)
    shutil.copy(work_dir / 'iter_2.pth', tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG.format(root=ROOT, folder=tmp_path))
    with pytest.raises(SystemExit, match='holds a run that was trained with another teacher, of an earlier version'):
        run('prepare', '--config', tmp_path / 'config.py', '--work-dir', tmp_path)
    assert not (tmp_path / 'teacher.safetensors').exists()


def test_without_a_checkpoint_it_says_what_to_do(tmp_path, run):
    with pytest.raises(SystemExit, match=r'train one first: make demo$'):
        run('draw', '--work-dir', tmp_path)


def test_the_study_measures_and_draws_every_setting(work_dir, capsys):
    options = ('--guidance', 1, 4, '--steps', 2, '--per-task', 1, '--num', 200, '--out', work_dir / 'study')
    run_tool('analysis_tools/text_study.py', work_dir / 'iter_2.pth', *options)
    printed = capsys.readouterr().out
    for line in ('| guidance | seen | unseen | frechet |', '| pictures of the data set |  |  | ', '| Heun | 3 | 2 | '):
        assert line in printed
    assert re.search(r'\| negative prompt \| red \| digit right \| on black \|\n.*\n\| \(empty\) \| \d+ % \|', printed)
    assert re.search(r'\| 4x \| \d+ % \| \d+ % \|', printed)
    assert '| without | ' in printed
    for name in ('guidance', 'solver', 'negative', 'tokens', 'lora'):
        assert np.asarray(Image.open(work_dir / f'study/{name}.png')).std() > 0
        assert json.loads((work_dir / f'study/{name}.json').read_text())

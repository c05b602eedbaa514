"""The scorers' outputs as their code writes them, and prompts as the benchmarks have them."""

import json

import pytest

from pixnerd_plugin.evaluation.text_benchmarks import (
    GENEVAL_TASKS,
    read_dpg_prompts,
    read_dpg_scores,
    read_geneval_prompts,
    read_geneval_scores,
)

DPG = """grids/0.png, 1.0, 1.0, 0.5, 1.0, 0.875
Model: grids
L1 category scores:
\tentity: 87.9
\tattribute: 87.2
\tother: 72.8
\trelation: 91.25
\tglobal: 80.5
L2 category scores:
\tattribute - color: 80.0
Image path: grids
Save results to: results.txt
DPG-Bench score: 80.875
"""


def test_geneval_scores_are_means_over_pictures_then_over_tasks(tmp_path):
    path = tmp_path / 'results.jsonl'
    lines = []
    for index, task in enumerate(GENEVAL_TASKS):
        for picture in range(4):
            lines.append(dict(filename='x', tag=task, prompt='p', correct=picture < index % 5, reason=''))
    lines += [dict(tag='counting', correct=False)] * 4
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n')
    scores = read_geneval_scores(path)
    expected = dict(zip(GENEVAL_TASKS, (0, 0.25, 0.25, 0.75, 1, 0), strict=True))
    assert scores == pytest.approx(expected | {'overall': sum(expected.values()) / 6})
    assert list(scores) == [*GENEVAL_TASKS, 'overall']


def test_dpg_scores_come_from_the_last_summary(tmp_path):
    path = tmp_path / 'results.txt'
    path.write_text(DPG.replace('80.875', '1.0') + DPG)
    expected = {'global': 80.5, 'entity': 87.9, 'attribute': 87.2, 'relation': 91.25, 'other': 72.8}
    assert read_dpg_scores(path) == {**expected, 'average': 80.875}


@pytest.mark.parametrize(
    ('read', 'text', 'message'),
    [
        (read_geneval_scores, '{"tag": "counting", "correct": true}\n', 'no pictures of the task single_object'),
        (read_geneval_scores, 'nonsense\n', 'line 1: not a JSON object with tag and correct'),
        (read_dpg_scores, DPG.split('Image path')[0], 'no summary at its end'),
        (read_dpg_scores, DPG.replace('\tglobal: 80.5\n', ''), 'no score of the category global'),
        (read_geneval_prompts, '{"tag": "colors"}\n', 'line 1: not a JSON object with prompt and tag'),
        (read_geneval_prompts, '\n', 'has no prompts'),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, read, text, message):
    path = tmp_path / 'file'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(path)
    with pytest.raises(FileNotFoundError, match='do not exist'):
        read(tmp_path / 'absent')


def test_dpg_prompts_are_named_by_their_files(tmp_path):
    (tmp_path / 'partiprompts7.txt').write_text('a cat,\nsleeping \n')
    (tmp_path / '12.txt').write_text('a dog')
    assert [(p.name, p.text) for p in read_dpg_prompts(tmp_path)] == [
        ('12', 'a dog'),
        ('partiprompts7', 'a cat, sleeping'),
    ]
    (tmp_path / 'a.b.txt').write_text('x')
    with pytest.raises(ValueError, match='up to its first point'):
        read_dpg_prompts(tmp_path)
    (tmp_path / 'a.b.txt').unlink()
    (tmp_path / 'empty.txt').write_text(' ')
    with pytest.raises(ValueError, match=r'empty\.txt is empty'):
        read_dpg_prompts(tmp_path)
    with pytest.raises(FileNotFoundError, match='no DPG-Bench prompts'):
        read_dpg_prompts(tmp_path / 'absent')

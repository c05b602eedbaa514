"""solver_error.py plan and few_steps.py on networks that know nothing."""

import json
import runpy
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixnerd_plugin import load_pipeline
from pixnerd_plugin.evaluation.classifier import SmallConvNet, save_classifier
from pixnerd_plugin.registry import MODELS
from tests.training import ROOT

SAMPLING = dict(type='AdamsFlowSampler', num_steps=4, order=2, guidance_scale=1.5, guidance_interval=[0.0, 0.6])
FEW = dict(type='MeanFlowSampler', num_steps=2)


@pytest.fixture
def run(monkeypatch, capsys):
    def run_tool(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments), '--device', 'cpu'])
        code = None
        try:
            runpy.run_path(str(ROOT / 'tools/analysis_tools' / name), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run_tool


def save(path, sampling, resolution, **changes):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1, alignment='centers')
    config = dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=8, num_classes=10, head=head)
    net = MODELS.build({**config, **changes})
    torch.nn.init.normal_(net.head.proj.weight)
    torch.nn.init.normal_(net.label_embed.weight)
    metadata = dict(architecture=net.architecture(), sampling=sampling, resolution=resolution)
    save_file(net.state_dict(), path, {'pixnerd': json.dumps(metadata)})
    return path


def test_a_plan_is_made_compared_and_written(run, tmp_path):
    source, target = save(tmp_path / 'net.safetensors', SAMPLING, 8), tmp_path / 'planned.safetensors'
    counts = ['--evaluations', 4, 6, '--num', 2, '--runs', 15, '--reference-steps', 400]
    code, printed = run('solver_error.py', 'plan', source, *counts, '--to', target, '--out', tmp_path / 'out')
    assert code is None
    rows = json.loads((tmp_path / 'out/plans.json').read_text())
    assert [row['evaluations'] for row in rows] == [4, 6]
    for row in rows:
        assert 0 < row['planned'] < 1
        assert (len(row['times']), row['times'][0], row['times'][-1]) == (row['evaluations'] + 1, 0, 1)
    assert f'| 4 | {rows[0]["uniform"]:.4f} | {rows[0]["shifted"]:.4f} | {rows[0]["planned"]:.4f} |' in printed
    assert Image.open(tmp_path / 'out/plans.png').size[0] > 100
    pipe = load_pipeline(target)
    assert [plan['error'] for plan in pipe.plans] == [row['planned'] for row in rows]
    assert pipe.plan(pipe.sampler).times == rows[0]['times']


@pytest.mark.parametrize(
    ('arguments', 'changes', 'message'),
    [
        (['--evaluations', 1], {}, 'must be at least 2'),
        (['--reference-steps', 100], {}, '--reference-steps 100 at least'),
        ([], dict(step_end=True), 'networks that give velocities'),
    ],
)
def test_what_cannot_be_planned_gets_one_line(run, tmp_path, arguments, changes, message):
    code, _ = run('solver_error.py', 'plan', save(tmp_path / 'net.safetensors', SAMPLING, 8, **changes), *arguments)
    assert message in code
    assert '\n' not in code


def test_few_steps_are_compared_and_drawn(run, tmp_path):
    teacher = save(tmp_path / 'teacher.safetensors', SAMPLING, 32)
    student = save(tmp_path / 'student.safetensors', FEW, 32, step_end=True)
    options = ['--teacher', teacher, '--teacher-steps', 6, '--num', 20, '--steps', 1, 2, '--out', tmp_path / 'out']
    code, printed = run('few_steps.py', student, *options)
    assert code is None
    rows = json.loads((tmp_path / 'out/few_steps.json').read_text())
    assert [row['sampler'] for row in rows] == ['6 guided steps', '1 step', '2 steps']
    assert '| 2 steps |' in printed
    assert all(0 < row['grain'] < 255 and row['seams'] > 0 for row in rows)
    # Three rows of ten digits, one step, two and the teacher's; and one at four times the size.
    assert Image.open(tmp_path / 'out/few_steps.png').size == (1316, 3 * 128 + 2 * 8)
    assert Image.open(tmp_path / 'out/fine.png').size == (1316, 128)


def test_stages_of_a_training_are_drawn_over_its_batches(run, tmp_path):
    early, late = (tmp_path / f'iter_{number}.safetensors' for number in (50, 1000))
    for path in (late, early):
        save(path, FEW, 32, step_end=True)
    options = ['--curve', '--num', 10, '--steps', 1, 2, '--out', tmp_path / 'out']
    code, printed = run('few_steps.py', late, early, *options)
    assert code is None
    assert f'curve: {tmp_path / "out/curve.png"}' in printed
    assert Image.open(tmp_path / 'out/curve.png').size == (460, 320)
    other = save(tmp_path / 'other.safetensors', FEW, 32, step_end=True)
    code, _ = run('few_steps.py', early, other, *options)
    assert code.endswith('takes the number of batches from names such as iter_400.pth')


def test_other_pictures_than_digits_are_recognised_by_their_classifier(run, tmp_path):
    torch.manual_seed(0)
    for index in range(200):
        path = tmp_path / 'real' / 'ab'[index % 2] / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()).save(path)
    classifier, net = tmp_path / 'classifier.safetensors', SmallConvNet(2)
    torch.nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.tensor([1.0, 0.0])  # to this one everything is of the first class
    save_classifier(net, classifier, class_names=['a', 'b'], size=(8, 8), accuracy=0.5)
    student = save(tmp_path / 'student.safetensors', FEW, 8, step_end=True, num_classes=2)
    options = ['--steps', 1, '--num', 101, '--data', tmp_path / 'real', '--out', tmp_path / 'out']
    code, printed = run('few_steps.py', student, *options, '--classifier', classifier)
    assert code is None
    (row,) = json.loads((tmp_path / 'out/few_steps.json').read_text())
    assert row['recognised'] == pytest.approx(51 / 101)
    assert row['distance'] > 0
    assert 'one half is' in printed
    code, _ = run('few_steps.py', student, *options)
    assert code.endswith('are no digits; give the --classifier that recognises them')

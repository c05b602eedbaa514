"""tools/analysis_tools/solver_error.py and sweep.py on networks that know nothing."""

import json
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pixnerd_plugin.engine import preemption
from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.evaluation.classifier import SmallConvNet, save_classifier
from pixnerd_plugin.evaluation.study import training_gflops
from pixnerd_plugin.registry import MODELS
from tests.training import ROOT

TOOLS = ROOT / 'tools/analysis_tools'
SMALL = ROOT / 'mm_configs/ablations/digits_small.py'


@pytest.fixture
def run(monkeypatch, capsys):
    def run_tool(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(TOOLS / name), run_name='__main__')
        return capsys.readouterr().out

    return run_tool


def test_the_order_of_convergence_is_found():
    fitted_order = runpy.run_path(str(TOOLS / 'solver_error.py'))['fitted_order']
    steps = [5, 10, 20, 50, 100]
    for order in (1, 2, 4):
        assert fitted_order(steps, [3 * n**-order for n in steps]) == pytest.approx(order)
    # The coarsest steps, where no order shows yet, do not count.
    assert fitted_order(steps, [1, 1, *(n**-2 for n in steps[2:])]) == pytest.approx(2)


def test_solvers_of_higher_order_come_closer(run, tmp_path):
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=4, depth=1)
    net = MODELS.build(dict(type='PixNerdDiT', dim=16, depth=1, num_heads=2, patch_size=4, num_classes=10, head=head))
    torch.nn.init.normal_(net.head.proj.weight)
    sampling = dict(type='AdamsFlowSampler', num_steps=4, guidance_scale=1.5, guidance_interval=(0.0, 0.6), timeshift=1)
    metadata = dict(architecture=net.architecture(), sampling=sampling, resolution=8)
    save_file(net.state_dict(), tmp_path / 'net.safetensors', {'pixnerd': json.dumps(metadata)})
    arguments = ['--steps', 4, 8, 16, '--reference-steps', 64, '--num', 2, '--device', 'cpu', '--out', tmp_path / 'out']
    printed = run('solver_error.py', tmp_path / 'net.safetensors', *arguments)
    errors = json.loads((tmp_path / 'out/errors.json').read_text())['errors']
    assert list(errors) == ['guidance 1.5 at every time', 'guidance 1.5 in (0.0, 0.6)']
    smooth = errors['guidance 1.5 at every time']
    assert smooth['Euler = Adams 1'][0] > smooth['Euler = Adams 1'][-1] > smooth['Heun'][-1]
    assert smooth['Euler = Adams 1'][-1] > smooth['Adams 2'][-1]
    assert '| Adams 4 |' in printed
    assert (tmp_path / 'out/strips.png').is_file()


@pytest.mark.parametrize('measure', ['parameters', 'flops'])
def test_the_linear_head_gets_what_the_field_spends(measure):
    tool = runpy.run_path(str(TOOLS / 'sweep.py'))
    config = load_config(SMALL)
    name = dict(parameters='equal parameters', flops='equal compute')[measure]
    variants = tool['trained_variants']('head', config, [8, 16])
    field, linear = (load_config(SMALL, variants[key]) for key in ('field, patch 16', f'linear, {name}, patch 16'))
    assert linear.model.backbone.head == dict(type='LinearHead')
    cost = tool['count_parameters'] if measure == 'parameters' else training_gflops
    assert cost(linear) == pytest.approx(cost(field), rel=0.01)


def test_muon_takes_so_many_fewer_steps_as_each_of_its_takes_longer():
    tool = runpy.run_path(str(TOOLS / 'sweep.py'))
    variants = tool['trained_variants']('optimizer', load_config(SMALL), [], 200, rates=[0.002], muon_steps=0.75)
    configs = {name: load_config(SMALL, {'train_cfg.max_iters': 200, **entries}) for name, entries in variants.items()}
    assert {name: config.train_cfg.max_iters for name, config in configs.items()} == {
        'AdamW, rate 0.002': 200,
        'Muon, rate 0.002': 150,
    }
    assert {config.optim_wrapper.optimizer.lr for config in configs.values()} == {0.002}
    assert configs['Muon, rate 0.002'].param_scheduler[1].end == 150


@pytest.mark.slow
def test_a_sweep_trains_measures_draws_and_goes_on(run, tmp_path):
    classifier = tmp_path / 'classifier.safetensors'
    save_classifier(SmallConvNet(10).eval(), classifier, class_names=list('0123456789'), size=(32, 32), accuracy=0.1)
    # Few steps, as six variants are sampled, and how well is not the question.
    config = tmp_path / 'few_steps.py'
    config.write_text(f'_base_ = {str(SMALL)!r}\nmodel = dict(sampler=dict(num_steps=3))\n')
    arguments = ['coordinates', '--config', config, '--seeds', 0, '--iters', 4, '--samples', 100]
    arguments += ['--classifier', classifier, '--out', tmp_path / 'out']
    printed = run('sweep.py', *arguments)
    assert '| coordinates dct | 1 |' in printed
    assert '| *real training pictures* |' in printed
    result = json.loads((tmp_path / 'out/coordinates_sincos/seed_0/result.json').read_text())
    assert {'held_out_flow', 'distance', 'accuracy', 'precision', 'recall', 'gflops', 'parameters'} <= result.keys()
    assert (tmp_path / 'out/coordinates.png').is_file()
    assert 'Training' not in run('sweep.py', *arguments)

    # An axis that needs no training samples from a network that is there.
    arguments[0] = 'guidance'
    arguments += ['--checkpoint', tmp_path / 'out/coordinates_dct/seed_0/iter_4.pth']
    printed = run('sweep.py', *arguments)
    assert printed.count('| guidance_') == 6
    figure = tmp_path / 'out/guidance.png'
    figure.unlink()
    assert 'Sampling' not in run('sweep.py', *arguments, '--only-draw')
    assert figure.is_file()

    with pytest.raises(SystemExit, match='holds results of --iters 4, and this sweep has 5; choose another --out'):
        run('sweep.py', *arguments, '--iters', 5)


@pytest.mark.slow
def test_the_study_of_heads_trains_each_cell_once_and_compares_pairs(run, tmp_path):
    classifier = tmp_path / 'classifier.safetensors'
    save_classifier(SmallConvNet(10).eval(), classifier, class_names=list('0123456789'), size=(32, 32), accuracy=0.1)
    config = tmp_path / 'few_steps.py'
    base = str(ROOT / 'mm_configs/ablations/digits_heads.py')
    config.write_text(
        f'_base_ = {base!r}\nmodel = dict(backbone=dict(dim=32, depth=1), sampler=dict(num_steps=2),\n'
        '    loss=dict(dim=32, projector_dim=32, align_layer=1))\ntrain_dataloader = dict(batch_size=2)\n'
    )
    arguments = ['--config', config, '--patches', 8, '--heads', 'DeCo', 'linear', '--terms', 'frequency', '--seeds', 0]
    arguments += ['--teraflops', 1e-6, '--samples', 100, '--classifier', classifier, '--out', tmp_path / 'out']
    # Asked to stop, it keeps what is trained and takes no half-trained network for a whole one.
    preemption._asked.set()
    with pytest.raises(SystemExit, match='75'):
        run('study_heads.py', *arguments)
    assert list((tmp_path / 'out').glob('*/seed_0/iter_0.pth'))
    assert not list((tmp_path / 'out').glob('*/seed_0/result.json'))
    printed = run('study_heads.py', *arguments, '--runs', 1)
    assert '3 runs are left' in printed
    printed = run('study_heads.py', *arguments)
    assert printed.count('Training patch 8') == 3
    assert '| 8 | DeCo | image | yes | 1 |' in printed
    assert 'patch 8, image against velocity' not in printed  # one pair a head is no interval
    assert 'patch 8, velocity, linear against DeCo' not in printed
    result = json.loads((tmp_path / 'out/patch_8_DeCo_image_frequency/seed_0/result.json').read_text())
    assert result['head'] == 'DeCo'
    checkpoint = torch.load(tmp_path / f'out/patch_8_DeCo_image_frequency/seed_0/iter_{result["steps"]}.pth')
    architecture = checkpoint['meta']['pixnerd']['architecture']
    assert (architecture['head']['type'], architecture['prediction']) == ('DeCoHead', 'image')
    with pytest.raises(SystemExit, match='holds results of --teraflops at patch 8 1e-06, and this sweep has 1e-05'):
        run('study_heads.py', *arguments, '--teraflops', 1e-5)
    figure = tmp_path / 'out/heads_and_objectives.png'
    figure.unlink()
    printed = run('study_heads.py', '--out', tmp_path / 'out', '--only-draw', '--beside', tmp_path / 'out')
    assert 'Training' not in printed
    assert printed.count('\nfew_steps\n') == 2
    assert figure.is_file()


def test_effects_are_over_pairs_that_differ_in_nothing_else(capsys):
    tool = runpy.run_path(str(TOOLS / 'study_heads.py'))

    def result(head, prediction, seed, distance, accuracy):
        keys = dict(patch=8, head=head, prediction=prediction, term='without', seed=seed)
        return dict(keys, distance=distance, accuracy=accuracy)

    results = [
        *(result('field', 'velocity', seed, 2.0, 0.5) for seed in (0, 1, 2)),
        result('field', 'image', 0, 1.0, 0.6),
        result('field', 'image', 1, 4.0, 0.8),
        result('linear', 'image', 0, 3.0, 0.1),
    ]
    tool['print_effects'](results, 'prediction', ['velocity', 'image'], within='head')
    # Log ratios of -0.69 and 0.69: the mean is 1, and Student's interval of two pairs is 12.71 / sqrt(2) wide.
    low, high = (f'{2 ** (sign * 12.71):.2f}' for sign in (-1, 1))
    assert capsys.readouterr().out == (
        f'patch 8, field, image against velocity, 2 pairs: distance times 1.00 ({low} to {high}), '
        'recognised +20.0 points (-107.1 to +147.1)\n'
    )


def test_intervals_are_those_of_the_books():
    tool = runpy.run_path(str(TOOLS / 'study_heads.py'))
    low, high = tool['wilson'](0.5, 100)
    assert (low, high) == pytest.approx((0.404, 0.596), abs=1e-3)
    assert tool['interval']([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.30 / 3**0.5, 2, 2 + 4.30 / 3**0.5))


def test_every_head_gets_the_operations_that_it_is_given():
    tool = runpy.run_path(str(TOOLS / 'study_heads.py'))
    path = str(ROOT / 'mm_configs/ablations/digits_heads.py')
    config = load_config(path)
    for head in tool['HEADS']:
        entries = tool['entries_of'](config, [8, head, 'image', 'frequency'])
        steps = tool['steps_of'](path, entries, 1.0)
        own = load_config(path, entries)
        assert steps * own.train_dataloader.batch_size * training_gflops(own) == pytest.approx(1000, rel=0.01)


def test_one_seed_of_everything_comes_before_the_next_of_anything():
    tool = runpy.run_path(str(TOOLS / 'study_heads.py'))
    part = tool['Part']
    cells = tool['cells_of']([part(8, 1.0, (0, 2), ('without',), ('field',)), part(4, 2.0, (0,), heads=('DeCo',))])
    predictions = ('velocity', 'image')
    assert cells == [
        *((0, [8, 'field', prediction, 'without']) for prediction in predictions),
        *((0, [4, 'DeCo', prediction, term]) for prediction in predictions for term in ('without', 'frequency')),
        *((2, [8, 'field', prediction, 'without']) for prediction in predictions),
    ]


def test_the_runs_of_the_page_are_known_by_their_config():
    tool = runpy.run_path(str(TOOLS / 'study_heads.py'))
    for name, parts in tool['DOCUMENTED'].items():
        assert (ROOT / f'mm_configs/ablations/{name}.py').is_file()
        args = SimpleNamespace(documented=True, config=f'mm_configs/ablations/{name}.py')
        assert tool['parts_of'](args) == list(parts)
        # A folder holds one number of operations for each patch size, and each run once.
        assert len({(part.patch, part.teraflops) for part in parts}) == len({part.patch for part in parts})
        runs = [(seed, *cell) for seed, cell in tool['cells_of'](parts)]
        assert len(set(runs)) == len(runs)
    with pytest.raises(ValueError, match='--documented knows the configs digits_heads'):
        tool['parts_of'](SimpleNamespace(documented=True, config='mm_configs/pixnerd_digits.py'))


def test_each_patch_size_may_have_a_budget_of_its_own():
    budgets_of = runpy.run_path(str(TOOLS / 'study_heads.py'))['budgets_of']
    assert budgets_of([4, 8], [1.0]) == {4: 1.0, 8: 1.0}
    assert budgets_of([4, 8], [2.0, 1.0]) == {4: 2.0, 8: 1.0}
    for wrong in ([1.0, 2.0, 3.0], [0.0]):
        with pytest.raises(
            ValueError, match=r'^--teraflops .*: give one number above 0, or one for each of --patches 4 8$'
        ):
            budgets_of([4, 8], wrong)

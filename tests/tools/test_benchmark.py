"""tools/benchmark.py as a user calls it, but in this process: each start of torch costs seconds."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.training import ROOT

pytestmark = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
TINY = ['--rounds', '1', '--size', '32']


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Run the tool; returns the rows of its table, header left out."""

    def run(*arguments: str) -> list[list[str]]:
        tool = ROOT / 'tools' / 'benchmark.py'
        monkeypatch.setattr(sys, 'argv', [str(tool), *arguments])
        monkeypatch.setattr(sys, 'path', list(sys.path))
        runpy.run_path(str(tool), run_name='__main__')
        lines = capsys.readouterr().out.splitlines()
        return [line.strip('| ').split(' | ') for line in lines if line.startswith('| ')][1:]

    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure memory here; that of resolution is measured in fresh processes, as in use."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    for name in ('train', 'table'):
        module = importlib.import_module(f'benchmarks.{name}')
        monkeypatch.setattr(module, 'in_fresh_process', lambda function, *args: function(*args))


def test_resolution_is_measured_in_a_fresh_process(benchmark):
    rows = benchmark('resolution', '--head', 'small', '--sizes', '128')
    assert [row[0] for row in rows] == ['128x128']
    assert 0 < float(rows[0][3]) < float(rows[0][2])
    assert float(rows[0][4]) == 0


def test_forward_prints_a_row_a_batch_size(benchmark):
    rows = benchmark('forward', '--model', 'tiny-text', '--batch', '1', '2', *TINY)
    assert [row[0] for row in rows] == ['1', '2']


def test_forward_says_where_the_time_goes(benchmark):
    rows = benchmark('forward', '--model', 'tiny', '--batch', '1', '--profile', *TINY)
    assert any(row[0].startswith('aten::') for row in rows)


def test_train_times_each_variant_and_its_memory(benchmark, in_this_process):
    rows = benchmark('train', '--model', 'tiny', '--variants', 'accumulate-2', *TINY)
    assert [row[0] for row in rows] == ['ours', 'accumulate-2']
    assert all(float(row[3]) > 0 for row in rows)


@pytest.mark.parametrize('steps', ['0', '2'])
def test_every_way_of_computing_on_a_cpu_has_a_row(benchmark, steps):
    rows = benchmark('cpu', '--model', 'tiny', '--steps', steps, *TINY)
    assert [row[0] for row in rows] == ['float32', 'float32, packed', 'bfloat16', 'bfloat16, packed']
    errors = [float(row[3]) for row in rows]
    assert errors[0] == 0
    assert errors[1] < 1e-5
    assert all(0 < error < 0.05 for error in errors[2:])


def test_products_alone_have_a_row_for_each_way(benchmark):
    rows = benchmark('cpu', '--model', 'tiny', '--products', '--ways', 'float32', 'bfloat16, packed', *TINY)
    assert [row[0] for row in rows[2:]] == [f'{way}: its products alone' for way in ('float32', 'bfloat16, packed')]
    assert all(float(row[1].split()[0]) > 0 for row in rows)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('packed', [False, True])
def test_products_alone_are_the_work_of_the_network_on_its_own_weights(monkeypatch, mode, packed):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    cpu, networks = (importlib.import_module(f'benchmarks.{name}') for name in ('cpu', 'networks'))
    net, _ = networks.build(networks.SHAPES['tiny'], 'cpu')
    net.eval()
    x, t, cond = torch.randn(1, 3, 32, 32), torch.rand(1), torch.tensor([3])

    @mode()
    def call():
        return net(x, t, cond)

    def work_of(call) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        counts = counter.get_flop_counts()['Global']
        return sum(flops for operator, flops in counts.items() if 'attention' not in str(operator))

    expected = work_of(call)
    packed_layers = net.pack() if packed else 0
    weights = [getattr(layer, '_packed', None) for layer in net.modules()] + list(net.parameters())
    replayed = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            replayed.append((str(func), args))
            return func(*args, **(kwargs or {}))

    again = cpu.products_of(call)
    with Recorder():
        again()
    own = [name for name, args in replayed if any(arg is weight for arg in args for weight in weights)]
    assert sum('_linear_pointwise' in name for name in own) == packed_layers
    assert len(own) > 8
    if not packed:
        # FlopCounterMode knows no packed products.
        assert work_of(again) == expected > 0


def test_products_are_of_one_forward(benchmark):
    with pytest.raises(SystemExit, match='--products is of one forward: leave --steps out'):
        benchmark('cpu', '--model', 'tiny', '--products', '--steps', '2', *TINY)


def test_compiling_by_block_makes_two_graphs_whatever_the_depth(benchmark):
    rows = benchmark('compile', '--model', 'tiny', '--depth', '2', '--backend', 'eager', *TINY)
    graphs = {row[0]: row[2] for row in rows}
    assert graphs == {
        f'{what}, {how}': '2' for what in ('forward', 'forward and backward') for how in ('by block', 'whole')
    }
    assert all(float(row[1]) > 0 for row in rows)


def test_table_has_a_row_a_network(benchmark, in_this_process):
    rows = benchmark('table', '--models', 'tiny', '--steps', '2', '--no-train', *TINY)
    assert [row[:2] for row in rows] == [['tiny', 'ours']]


def test_pictures_are_scaled_by_what_the_network_sees(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    shapes, evaluations = (importlib.import_module(f'benchmarks.{name}') for name in ('networks', 'sample'))
    count = {
        (name, steps): evaluations.evaluations(shapes.SHAPES[name], steps, 'ours')
        for name, steps in (('l16', 100), ('l16', 2), ('xxl16', 25))
    }
    # Classes are guided in (0.1, 1), texts in (0, 1), both bounds excluded.
    assert count == {('l16', 100): 189, ('l16', 2): 3, ('xxl16', 25): 49}
    assert evaluations.evaluations(shapes.SHAPES['l16'], 100, 'published') == 200


def test_a_folder_that_is_no_checkout_is_named(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=f'error: .*{tmp_path}'):
        benchmark('forward', '--model', 'tiny', '--reference', str(tmp_path), *TINY)


def test_the_gpu_command_measures_all_it_names_on_a_cpu_too(benchmark, tmp_path):
    benchmark('gpu', '--dry-run', '--out', str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / 'gpu.jsonl').read_text().splitlines()]
    sections = ['machine', 'parity', 'roofline', 'field', 'forward', 'sampling', 'training step', 'large pictures']
    assert list(dict.fromkeys(row['section'] for row in rows)) == sections
    exact = {row['case']: float(row['value']) for row in rows if row['section'] == 'parity'}
    assert len(exact) == 12
    assert all(error < (1e-5 if 'float32' in case else 2e-2) for case, error in exact.items())
    # On a CPU both are the operations.
    assert {row['value'] for row in rows if 'difference of velocities' in row['detail']} == {'0.0e+00'}
    assert not [row for row in rows if row['value'] in ('failed', 'out of memory')]
    assert len((tmp_path / 'gpu.md').read_text().splitlines()) == len(rows) + 2


def test_the_gpu_command_needs_a_gpu(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='no usable GPU; --dry-run'):
        benchmark('gpu', '--out', str(tmp_path))

import json
import sys

import pytest

from pixnerd_plugin.engine.logs import read_scalars
from tests.training import run_tool

TOOL = 'tools/analysis_tools/plot_logs.py'


def write(folder, start, steps, offset=0.0):
    log = folder / start / 'vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    entries = [
        {'loss': 1 / s + offset, 'loss_flow': 1 / s + offset, 'lr': s, 'loss_flow_by_time/0.25': 1 / s, 'step': s}
        for s in steps
    ]
    log.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return folder


def test_starts_are_joined_and_the_later_one_counts(tmp_path):
    run = write(tmp_path, '20260101_000000', range(1, 6))
    write(tmp_path, '20260102_000000', range(4, 9), offset=1.0)
    steps = read_scalars(run)
    assert list(steps) == list(range(1, 9))
    assert steps[4]['loss'] == 1.25
    with pytest.raises(ValueError, match='logged twice'):
        read_scalars(run, strict=True)


def test_a_figure_compares_runs_and_mistakes_are_one_line(tmp_path):
    a, b = (write(tmp_path / name, '20260101_000000', range(1, 30), i) for i, name in enumerate('ab'))
    done = run_tool(sys.executable, TOOL, a, f'other={b}', '--out', tmp_path / 'compare.png', '--smooth', '3')
    assert done.returncode == 0, done.stderr
    assert 'other: 29 iterations' in done.stdout
    assert (tmp_path / 'compare.png').read_bytes().startswith(b'\x89PNG')
    wrong = run_tool(sys.executable, TOOL, a, '--keys', 'accuracy', '--out', tmp_path / 'no.png')
    assert (wrong.returncode, wrong.stderr.count('\n')) == (1, 1)
    assert 'no run has logged accuracy' in wrong.stderr

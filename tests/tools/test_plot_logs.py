import json
import runpy
import sys

import pytest

from pixnerd_plugin.engine.logs import read_scalars
from tests.training import ROOT, run_tool

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


def test_held_out_numbers_are_drawn_beside_those_of_training(tmp_path, monkeypatch):
    from matplotlib import pyplot

    run = write(tmp_path / 'a', '20260101_000000', range(1, 30))
    log = run / '20260101_000000/vis_data/scalars.json'
    held_out = {'val/loss_flow': 0.7, 'val/loss_flow_by_time/0.25': 0.6, 'val/frechet_distance': 3.0}
    with log.open('a') as file:
        for step in (10, 20):
            file.write(
                json.dumps(held_out | {'val/frechet_floor': 0.5, 'val/loss_flow': 7 / step, 'step': step}) + '\n'
            )
            held_out['val/frechet_distance'] = 2.0
    steps = read_scalars(run, strict=True)
    assert steps[20]['val/loss_flow'] == 0.35
    assert steps[20]['loss_flow'] == 1 / 20
    drawn = {}
    monkeypatch.setattr(pyplot, 'close', lambda figure: drawn.update(axes=figure.axes))
    monkeypatch.setattr(sys, 'argv', ['plot_logs.py', str(run), '--out', str(tmp_path / 'a.png')])
    runpy.run_path(str(ROOT / TOOL), run_name='__main__')
    panels = {panel.get_title(): [list(line.get_ydata()) for line in panel.lines] for panel in drawn['axes']}
    assert panels['flow matching loss'][1] == [0.7, 0.35]
    assert panels['Fréchet distance, held out (dotted: real pictures)'][::2] == [[3.0, 2.0], [0.5, 0.5]]
    assert panels['flow matching loss by time, last tenth'][1] == [0.6]


def test_a_figure_compares_runs_and_mistakes_are_one_line(tmp_path):
    a, b = (write(tmp_path / name, '20260101_000000', range(1, 30), i) for i, name in enumerate('ab'))
    done = run_tool(sys.executable, TOOL, a, f'other={b}', '--out', tmp_path / 'compare.png', '--smooth', '3')
    assert done.returncode == 0, done.stderr
    assert 'other: 29 iterations' in done.stdout
    assert (tmp_path / 'compare.png').read_bytes().startswith(b'\x89PNG')
    wrong = run_tool(sys.executable, TOOL, a, '--keys', 'accuracy', '--out', tmp_path / 'no.png')
    assert (wrong.returncode, wrong.stderr.count('\n')) == (1, 1)
    assert 'no run has logged accuracy' in wrong.stderr

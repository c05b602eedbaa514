import json

from pixnerd_plugin.engine.logs import read_scalars, set_aside_after


def test_later_lines_and_a_torn_one_are_taken_out_and_kept_aside(tmp_path):
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [json.dumps(dict(loss=1.0, step=step)) for step in range(1, 6)]
    whole = '\n'.join(lines) + '\n{"loss": 1.'
    log.write_text(whole)
    set_aside_after(tmp_path, 3)
    assert [json.loads(line)['step'] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert log.with_name('scalars.json.1').read_text() == whole
    set_aside_after(tmp_path, 3)
    set_aside_after(tmp_path, 2)
    assert sorted(path.name for path in log.parent.iterdir()) == ['scalars.json', 'scalars.json.1', 'scalars.json.2']
    assert list(read_scalars(tmp_path)) == [1, 2]

"""The shipped workflows as files: what they name, and that they can be read on the page."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from comfy_nodes.nodes import NODES

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / 'example_workflows').glob('*.json'))
IDS = {node.define_schema().node_id for node in NODES}
TITLE, SLOT = 30, 20
# The newer node renderer draws nodes about 20 pixels taller.
ROW_GAP, COLUMN_GAP = 60, 60

each_workflow = pytest.mark.parametrize('workflow', PATHS, ids=lambda path: path.stem, indirect=True)


@pytest.fixture
def workflow(request):
    return json.loads(request.param.read_text())


def box(node):
    """``left, top, right, bottom`` with the title."""
    (x, y), (width, height) = node['pos'], node['size']
    return x, y - TITLE, x + width, y + height


def curve(link, nodes):
    """Points along a link as the page draws it."""
    _, origin, out, target, slot, _ = link
    start, end = nodes[origin], nodes[target]
    x0, y0 = start['pos'][0] + start['size'][0], start['pos'][1] + SLOT * (out + 0.7)
    x1, y1 = end['pos'][0], end['pos'][1] + SLOT * (slot + 0.7)
    reach = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / 4
    for i in range(101):
        t = i / 100
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        yield a * x0 + b * (x0 + reach) + c * (x1 - reach) + d * x1, (a + b) * y0 + (c + d) * y1


@each_workflow
def test_rows_and_columns_keep_apart(workflow):
    for first, second in combinations(map(box, workflow['nodes']), 2):
        beside = second[0] - first[2] >= COLUMN_GAP or first[0] - second[2] >= COLUMN_GAP
        below = second[1] + TITLE - first[3] >= ROW_GAP or first[1] + TITLE - second[3] >= ROW_GAP
        assert beside or below, (first, second)


@each_workflow
def test_no_link_runs_behind_a_node(workflow):
    nodes = {node['id']: node for node in workflow['nodes']}
    for link in workflow['links']:
        others = [node for number, node in nodes.items() if number not in (link[1], link[3])]
        for x, y in curve(link, nodes):
            for node in others:
                left, top, right, bottom = box(node)
                assert not (left < x < right and top < y < bottom), (link, node['type'])


@each_workflow
def test_links_lead_to_the_right(workflow):
    nodes = {node['id']: node for node in workflow['nodes']}
    for _, origin, _, target, *_ in workflow['links']:
        assert box(nodes[origin])[2] < box(nodes[target])[0]


@each_workflow
def test_loaders_are_wide_and_their_files_known(workflow):
    loaders = [node for node in workflow['nodes'] if node['type'] == 'PixNerdModelLoader']
    assert loaders
    for node in loaders:
        assert node['size'][0] >= 400
        (model,) = node['properties']['models']
        assert model['name'] == node['widgets_values'][0]
        assert model['directory'] == 'diffusion_models'
        assert re.fullmatch(r'https://huggingface\.co/MCG-NJU/PixNerd-XX?L-P16-[CT]2I/resolve/main/\S+', model['url'])
        assert model['url'].endswith(model['name'].replace('%', '%25'))


@each_workflow
def test_nodes_of_one_kind_have_titles_of_their_own(workflow):
    by_type = {}
    for node in workflow['nodes']:
        by_type.setdefault(node['type'], []).append(node.get('title'))
    for kind in ('PixNerdSampler', 'PixNerdEmptyImage', 'CLIPTextEncode'):
        titles = by_type.get(kind, [])
        assert len(titles) < 2 or len(set(titles) - {None}) == len(titles), kind


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_they_have_a_picture_and_name_nothing_local(path):
    text = path.read_text()
    assert path.with_suffix('.jpg').is_file()
    assert not re.search(r'/(home|root|tmp|work|Users)/', text)
    ours = {node['type'] for node in json.loads(text)['nodes'] if node['type'].startswith('PixNerd')}
    assert ours
    assert ours <= IDS


def test_their_names_sort():
    assert [path.stem[:3] for path in PATHS] == [f'{i:02d}_' for i in range(1, len(PATHS) + 1)]

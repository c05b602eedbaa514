"""ComfyUI's own page in headless Chromium: what a user sees and clicks."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from .host import ROOT, require_host

require_host()
playwright = pytest.importorskip('playwright.sync_api', reason='the page is driven by playwright')
CHROMIUM = os.environ.get('CHROMIUM', shutil.which('chromium') or '')
if not CHROMIUM:
    pytest.skip('no chromium on the path, nor named by CHROMIUM', allow_module_level=True)

from .workflow import cheapened, to_prompt  # noqa: E402

WORKFLOWS = sorted((ROOT / 'example_workflows').glob('*.json'))
OLD_WORKFLOWS = sorted((ROOT / 'tests/data/v0.1/workflows').glob('*.json'))
# Generous: a page on a busy machine without a GPU.
SECONDS = 240
TITLE = 30
# Where screenshots go, if anywhere.
PICTURES = os.environ.get('PIXNERD_SCREENSHOTS')

WIDGET_POSITION = """([type, name]) => {
    const node = app.graph._nodes.find(node => node.type == type);
    const widget = node.widgets.find(widget => widget.name == name);
    const {canvas, ds} = app.canvas, box = canvas.getBoundingClientRect();
    return [
        box.x + (node.pos[0] + node.size[0] / 2 + ds.offset[0]) * ds.scale,
        box.y + (node.pos[1] + widget.last_y + 10 + ds.offset[1]) * ds.scale,
    ];
}"""
SHOW_NODE = """(type) => {
    const node = app.graph._nodes.find(node => node.type == type), {ds} = app.canvas;
    ds.scale = 1;
    ds.offset[0] = 350 - node.pos[0];
    ds.offset[1] = 150 - node.pos[1];
    app.canvas.setDirty(true, true);
}"""
SHOW_ALL = """() => {
    const nodes = app.graph._nodes, {ds} = app.canvas;
    const left = Math.min(...nodes.map(n => n.pos[0])), right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
    const top = Math.min(...nodes.map(n => n.pos[1])) - 50;
    app.canvas.low_quality_zoom_threshold = 0;
    app.canvas.min_font_size_for_lod = 0;
    ds.scale = Math.min(1, 1600 / (right - left));
    ds.offset[0] = 80 / ds.scale - left;
    ds.offset[1] = 60 / ds.scale - top;
    app.canvas.setDirty(true, true);
}"""
# The newer renderer's nodes are elements of the page; in units of the graph, titles included.
RENDERED = """() => app.graph._nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`), {scale} = app.canvas.ds;
    const {x, y, width, height} = element.getBoundingClientRect();
    return [node.id, x / scale, y / scale, width / scale, height / scale];
})"""
SET_WIDGETS = """(values) => {
    for (const node of app.graph._nodes)
        for (const widget of node.widgets || [])
            if (node.id in values && widget.name in values[node.id]) widget.value = values[node.id][widget.name];
}"""


@pytest.fixture(scope='module')
def page(server):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=1800, height=800))
        page.set_default_timeout(SECONDS * 1000)
        page.goto(server.url, wait_until='commit')
        page.wait_for_function('() => window.app?.graph && !!window.LiteGraph?.registered_node_types?.PixNerdSampler')
        # A dialog with templates opens first.
        page.wait_for_timeout(2000)
        page.keyboard.press('Escape')
        yield page
        browser.close()


def load(page, path):
    workflow = json.loads(Path(path).read_text())
    page.evaluate('async (workflow) => { await app.loadGraphData(workflow) }', workflow)
    return workflow


def queue(page, prompt):
    """Set the page's widgets to those of ``prompt`` and press its button; returns the prompt's id."""
    page.evaluate(SET_WIDGETS, {number: node['inputs'] for number, node in prompt.items()})
    page.evaluate(SHOW_ALL)
    with page.expect_response(
        lambda response: response.url.endswith('/prompt') and response.request.method == 'POST'
    ) as answer:
        page.get_by_test_id('queue-button').click()
    return answer.value.json()['prompt_id']


def screenshot(page, name):
    if PICTURES:
        page.screenshot(path=f'{PICTURES}/{name}.png')


@pytest.mark.parametrize('path', WORKFLOWS + OLD_WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_load_whole(page, object_info, path):
    workflow = load(page, path)
    page.evaluate(SHOW_ALL)
    page.wait_for_timeout(1000 if PICTURES else 0)
    screenshot(page, f'workflow_{path.stem}')
    types = page.evaluate('() => app.graph._nodes.filter(node => node.has_errors).map(node => node.type)')
    assert types == []
    assert page.evaluate('() => app.graph._nodes.length') == len(workflow['nodes'])
    assert page.get_by_text('Missing Node').count() == 0
    output = page.evaluate('async () => (await app.graphToPrompt()).output')
    expected = to_prompt(workflow, object_info)
    assert {number: node['class_type'] for number, node in output.items()} == {
        number: node['class_type'] for number, node in expected.items()
    }
    for number, node in expected.items():
        for name, value in node['inputs'].items():
            if name in output[number]['inputs']:
                assert output[number]['inputs'][name] == value


@pytest.fixture
def nodes_2(page):
    """The page with its newer renderer, where it has a finished one."""
    setting = 'app.extensionManager.setting'
    if not page.evaluate(f"() => {setting}.settings?.['Comfy.VueNodes.Enabled']?.category?.includes('Nodes 2.0')"):
        pytest.skip('this page has no Nodes 2.0')
    page.evaluate(f"async () => await {setting}.set('Comfy.VueNodes.Enabled', true)")
    yield
    page.evaluate(f"async () => await {setting}.set('Comfy.VueNodes.Enabled', false)")


@pytest.mark.usefixtures('nodes_2')
@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_the_saved_sizes_are_those_of_the_newer_renderer(page, path):
    """What tests/comfy_nodes/test_workflows.py finds out about the layout holds there too."""
    workflow = load(page, path)
    page.evaluate(SHOW_ALL)
    page.wait_for_selector('[data-node-id]')
    page.wait_for_timeout(1000)
    screenshot(page, f'nodes_2_{path.stem}')
    saved = {str(node['id']): node['size'] for node in workflow['nodes']}
    for number, _, _, width, height in page.evaluate(RENDERED):
        assert width <= saved[str(number)][0] + 1
        assert height - TITLE <= saved[str(number)][1] + 1, (number, height)


@pytest.mark.parametrize(('node', 'widget'), [('PixNerdSampler', 'cfg'), ('PixNerdModelLoader', 'weight_dtype')])
def test_widgets_show_their_tooltips(page, object_info, node, widget):
    load(page, WORKFLOWS[0])
    page.evaluate(SHOW_NODE, node)
    page.wait_for_timeout(1000)
    x, y = page.evaluate(WIDGET_POSITION, [node, widget])
    inputs = object_info[node]['input']['required']
    tooltip = inputs[widget][1]['tooltip']
    page.mouse.move(x - 30, y - 2)
    page.mouse.move(x, y)
    page.get_by_text(tooltip).wait_for()
    screenshot(page, 'tooltip')
    page.mouse.move(5, 5)


def test_the_graph_queued_from_the_page_gives_the_picture(page, server, object_info):
    prompt = cheapened(to_prompt(load(page, WORKFLOWS[0]), object_info))
    entry = server.wait(queue(page, prompt), SECONDS)
    (image,) = (image for node in entry['outputs'].values() for image in node['images'])
    (expected,) = server.run(prompt, SECONDS) or [server.picture(image)]
    assert np.array_equal(server.picture(image), expected)
    page.wait_for_function(
        "() => app.graph._nodes.find(node => node.type == 'SaveImage').imgs?.[0]?.naturalWidth == 128"
    )
    page.wait_for_timeout(1000)
    screenshot(page, 'text_to_image')


def test_cancel_on_the_page_stops_the_run(page, server, object_info):
    prompt = cheapened(to_prompt(load(page, WORKFLOWS[0]), object_info))
    for node in prompt.values():
        if 'steps' in node['inputs']:
            node['inputs'].update(steps=1000, seed=time.time_ns() % 2**32)
    prompt_id = queue(page, prompt)
    page.wait_for_function("() => app.graph._nodes.find(node => node.type == 'PixNerdSampler').progress > 0")
    screenshot(page, 'running')
    page.get_by_role('button', name='Cancel current run').click()
    entry = server.wait(prompt_id, SECONDS)
    assert any(kind == 'execution_interrupted' for kind, _ in entry['status']['messages'])


@pytest.mark.parametrize('path', sorted((ROOT / 'subgraphs').glob('*.json')), ids=lambda path: path.stem)
def test_blueprints_are_whole_graphs(page, server, path):
    """A blueprint put on the page is the prompt of its nodes, its widgets those of the nodes inside."""
    blueprint = load(page, path)
    (subgraph,) = blueprint['definitions']['subgraphs']
    page.wait_for_timeout(1000)
    widgets = page.evaluate('() => app.graph._nodes[0].widgets.map(widget => widget.name)')
    assert set(widgets) >= {slot['name'] for slot in subgraph['inputs']}
    screenshot(page, f'blueprint_{path.stem}')
    output = page.evaluate('async () => (await app.graphToPrompt()).output')
    assert sorted(node['class_type'] for node in output.values()) == sorted(node['type'] for node in subgraph['nodes'])
    for number, node in output.items():
        (own,) = (n for n in subgraph['nodes'] if n['type'] == node['class_type'])
        assert all(value in node['inputs'].values() for value in own['widgets_values'] if value != 'fixed'), number

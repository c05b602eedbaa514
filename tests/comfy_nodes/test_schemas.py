import json
from pathlib import Path

import pytest

from comfy_nodes.nodes import NODES

ROOT = Path(__file__).resolve().parents[2]
# A promise to saved workflows.
IDS = [
    'PixNerdModelLoader',
    'PixNerdTextEncoderLoader',
    'PixNerdTextEncode',
    'PixNerdClassLabel',
    'PixNerdEmptyImage',
    'PixNerdSampler',
    'PixNerdAdamsSolver',
    'PixNerdSigmas',
    'PixNerdGuidanceInterval',
    'PixNerdResolution',
    'PixNerdDecode',
]
LANGUAGES = ('en', 'zh')
SCHEMAS = [node.define_schema() for node in NODES]

each_schema = pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.node_id)


def test_the_ids_are_those_of_the_contract():
    assert [schema.node_id for schema in SCHEMAS] == IDS


@each_schema
def test_everything_has_a_tooltip(schema):
    assert schema.description.endswith('.')
    for part in schema.inputs + schema.outputs:
        assert part.fields['tooltip'].endswith('.')


@each_schema
def test_the_inputs_are_the_arguments(schema):
    (node,) = (node for node in NODES if node.__name__ == schema.node_id)
    arguments = node.execute.__func__.__code__.co_varnames[1 : node.execute.__func__.__code__.co_argcount]
    assert [part.id for part in schema.inputs] == list(arguments)


def test_what_is_seldom_set_is_folded_away():
    folded = {f'{schema.node_id}.{part.id}' for schema in SCHEMAS for part in schema.inputs if part.extra_dict}
    assert folded >= {'PixNerdSampler.order', 'PixNerdSampler.guidance_end', 'PixNerdDecode.field_chunk'}
    assert not folded & {'PixNerdSampler.steps', 'PixNerdSampler.cfg', 'PixNerdDecode.width', 'PixNerdDecode.blend'}
    assert 'PixNerdResolution.blend' not in folded


def test_blending_is_last_and_off_unless_asked_for():
    """Saved workflows name their widgets by place, and their pictures stay those of the published rule."""
    (schema,) = (schema for schema in SCHEMAS if schema.node_id == 'PixNerdResolution')
    blend = schema.inputs[-1]
    assert (blend.id, blend.fields['optional']) == ('blend', True)
    assert [blend.fields[name] for name in ('default', 'min', 'max', 'step')] == [0, 0, 1, 0.05]


@each_schema
def test_defaults_are_in_range(schema):
    for part in schema.inputs:
        fields = part.fields
        if 'min' in fields:
            assert fields['min'] <= fields['default'] <= fields['max']
        if fields.get('options') and 'default' in fields:
            assert fields['default'] in fields['options']


@each_schema
def test_the_help_page_names_every_input(schema):
    page = (ROOT / 'web/docs' / f'{schema.node_id}.md').read_text()
    assert page.startswith(f'# {schema.display_name}\n')
    for part in schema.inputs:
        assert f'| `{part.id}` | {part.fields["tooltip"]} |' in page


@pytest.mark.parametrize('language', LANGUAGES)
@each_schema
def test_the_translations_are_complete(schema, language):
    entry = json.loads((ROOT / 'locales' / language / 'nodeDefs.json').read_text())[schema.node_id]
    assert set(entry['inputs']) == {part.id for part in schema.inputs}
    assert len(entry['outputs']) == len(schema.outputs)
    assert all(part['tooltip'] for part in entry['inputs'].values())
    if language == 'en':
        assert entry['display_name'] == schema.display_name
        assert entry['description'] == schema.description
        for part in schema.inputs:
            assert entry['inputs'][part.id]['tooltip'] == part.fields['tooltip']


def test_comfyui_installs_nothing():
    assert (ROOT / 'requirements.txt').read_text() == ''

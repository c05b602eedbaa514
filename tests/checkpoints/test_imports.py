"""No file makes a module be imported, and so run: not by a type, a scope, a name in a pickle, nor at any depth."""

import importlib.util
import json
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pixnerd_plugin import load_backbone, load_pipeline
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.checkpoints.inspect import report
from pixnerd_plugin.checkpoints.lora import apply_lora
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import EulerFlowSampler, FieldTrajectory

from .archives import rewrite_pickle
from .files import same, save_lightning, save_mmengine, tiny_inputs, tiny_network

# Read from its file: the package around it needs ComfyUI.
_PLACE = Path(__file__).parents[2] / 'comfy_nodes/weights.py'
_SPEC = importlib.util.spec_from_file_location('weights_of_comfy_nodes', _PLACE)
weights = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(weights)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, as a package with what mmengine looks for in a scope."""
    mark = tmp_path / 'mark'
    package = tmp_path / 'path/evilmod'
    package.mkdir(parents=True)
    for name in ('__init__', 'registry', 'AdamsFlowSampler', 'NeuralFieldHead', 'PixNerdDiT'):
        (package / f'{name}.py').write_text(f'open({str(mark)!r}, "w")\nclass MODELS: pass\n')
    monkeypatch.syspath_prepend(str(tmp_path / 'path'))
    yield mark
    assert not mark.exists()
    assert not any(name.startswith('evilmod') for name in sys.modules)


NET = tiny_network()
SAMPLING = dict(type='AdamsFlowSampler', num_steps=4)
SCOPE = dict(_scope_='evilmod')


def head(**changes):
    return dict(NET.architecture()['head'], **changes)


METADATA = [
    dict(sampling=dict(SAMPLING, **SCOPE)),
    dict(sampling=dict(SAMPLING, type='evilmod.AdamsFlowSampler')),
    dict(sampling=dict(SAMPLING, type='evilmod')),
    dict(sampling=dict(SAMPLING, guidance_scale=dict(type='evilmod.registry'))),
    dict(sampling=dict(SAMPLING, guidance_interval=[dict(type='evilmod.registry', **SCOPE), 1.0])),
    dict(architecture=dict(NET.architecture(), **SCOPE)),
    dict(architecture=dict(NET.architecture(), type='evilmod.PixNerdDiT')),
    dict(architecture=dict(NET.architecture(), operations='evilmod')),
    dict(architecture=dict(NET.architecture(), head=head(**SCOPE))),
    dict(architecture=dict(NET.architecture(), head=head(type='evilmod.NeuralFieldHead'))),
    dict(architecture=dict(NET.architecture(), head=head(type='evilmod'))),
    dict(architecture=dict(NET.architecture(), head=head(width=dict(type='evilmod.registry')))),
    dict(architecture=dict(NET.architecture(), head=head(operations='evilmod'))),
    dict(other=dict(type='evilmod.registry', **SCOPE), **SCOPE),
]


def attempt(function, *arguments):
    """Run something that may refuse what it is given."""
    with suppress(ValueError):
        function(*arguments)


def readers(folder):
    return [
        load_backbone,
        load_pipeline,
        report,
        lambda path: convert(path, folder / 'out.safetensors', force=True),
        lambda path: apply_lora(tiny_network(), path),
        FieldTrajectory.load,
    ]


@pytest.mark.parametrize('metadata', METADATA)
def test_metadata(tmp_path, evil, metadata):
    state = NET.state_dict()
    folder = tmp_path / 'files'
    folder.mkdir()
    paths = [folder / name for name in ('a.safetensors', 'b.safetensors', 'c.pth', 'd.ckpt')]
    save_file(state, paths[0], {'pixnerd': json.dumps(metadata)})
    save_file({**state, 'pixnerd_metadata': weights.metadata_tensor(metadata)}, paths[1])
    save_mmengine(paths[2], state, state, {}, metadata)
    save_lightning(paths[3], state, state, {})
    torch.save(dict(torch.load(paths[3], weights_only=True), pixnerd=metadata), paths[3])
    for path in paths:
        for read in readers(folder):
            attempt(read, path)
    attempt(weights.describe, {**state, 'pixnerd_metadata': weights.metadata_tensor(metadata)}, '')


def test_the_same_files_load_without_it(tmp_path):
    state = NET.state_dict()
    metadata = dict(sampling=SAMPLING, architecture=NET.architecture())
    save_file(state, tmp_path / 'a.safetensors', {'pixnerd': json.dumps(metadata)})
    assert load_pipeline(tmp_path / 'a.safetensors').sampler.num_steps == 4


@pytest.mark.parametrize('name', ['evilmod.registry', 'evilmod.AdamsFlowSampler', 'evilmod.registry.MODELS'])
@pytest.mark.parametrize('protocol', [2, 4])
def test_names_in_a_pickle(tmp_path, evil, name, protocol):
    folder = tmp_path / 'files'
    folder.mkdir()
    path = folder / 'a.ckpt'
    content = dict(state_dict=NET.state_dict(), hyper_parameters=torch.Size([1, 2]))
    torch.save(content, path, pickle_protocol=protocol)
    module, _, attribute = name.rpartition('.')
    if protocol == 2:
        old, new = rb'ctorch\nSize\n', f'c{module}\n{attribute}\n'.encode()
    else:
        old, new = (
            rb'h.\x8c\x04Size\x94',
            b''.join(bytes((0x8C, len(t))) + t.encode() for t in (module, attribute)) + b'\x94',
        )

    def change(pickle):
        changed, count = re.subn(old, lambda match: new, pickle, flags=re.DOTALL)
        assert count == 1
        return changed

    rewrite_pickle(path, change)
    assert same(load_backbone(path).state_dict(), NET.state_dict())
    for read in readers(folder):
        attempt(read, path)


@pytest.mark.parametrize(
    ('entry', 'value'),
    [
        ('sampler', dict(type='EulerFlowSampler', num_steps=2, **SCOPE)),
        ('sampler', dict(type='evilmod.registry')),
        ('sampler', dict(type='EulerFlowSampler', num_steps=dict(type='evilmod.registry'))),
        ('head', head(**SCOPE)),
        ('head', dict(type='evilmod.NeuralFieldHead')),
        ('head', head(operations='evilmod')),
        ('head', head(width=dict(type='evilmod.registry', **SCOPE))),
        ('_scope_', 'evilmod'),
        ('type', 'evilmod.registry'),
    ],
)
def test_fields(tmp_path, evil, entry, value):
    folder = tmp_path / 'files'
    folder.mkdir()
    x, _, cond = tiny_inputs(NET)
    sampler = EulerFlowSampler(num_steps=2, guidance_scale=1.0)
    _, field = sampler.sample(NET, x, cond, torch.full_like(cond, 3), record_field=True)
    path = folder / 'a.safetensors'
    field.save(path)
    with safe_open(str(path), 'pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        description = json.loads(file.metadata()['pixnerd_field'])
    FieldTrajectory.load(path)
    save_file(tensors, path, {'pixnerd_field': json.dumps(dict(description, **{entry: value}))})
    with pytest.raises(ValueError, match=r'a\.safetensors') as error:
        FieldTrajectory.load(path)
    assert '\n' not in str(error.value)
    for read in readers(folder):
        attempt(read, path)


def test_adapters_and_their_settings(tmp_path, evil):
    folder = tmp_path / 'files'
    folder.mkdir()
    layer = 'base_model.model.blocks.0.attn.qkv'
    tensors = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
    text = json.dumps(dict(type='evilmod.registry', **SCOPE, sampling=dict(SAMPLING, **SCOPE)))
    save_file(tensors, folder / 'adapter_model.safetensors', {'pixnerd': text, 'pixnerd_lora': text})
    settings = dict(lora_alpha=4, auto_mapping=dict(base_model_class='X', parent_library='evilmod'))
    settings |= dict(type='evilmod.registry', megatron_core='evilmod.registry', **SCOPE)
    (folder / 'adapter_config.json').write_text(json.dumps(settings))
    apply_lora(tiny_network(), folder)
    for read in readers(folder):
        attempt(read, folder / 'adapter_model.safetensors')
    report(folder)


def test_a_head_of_the_users_own_gets_plain_arguments_alone(tmp_path, evil):
    class OwnHead(torch.nn.Module):
        def __init__(self, dim, patch_size, in_channels, scale=1, operations=torch.nn, **factory):
            super().__init__()
            assert operations is not None
            assert not isinstance(operations, str)
            assert not factory
            self.proj = operations.Linear(dim, in_channels * patch_size**2 * scale)

    MODELS.module_dict['OwnHead'] = OwnHead
    try:
        net = MODELS.build(dict(NET.architecture(), head=dict(type='OwnHead')))
        path = tmp_path / 'a.safetensors'
        plain = dict(NET.architecture(), head=dict(type='OwnHead', scale=1))
        changes = (dict(operations='evilmod'), dict(factory='evilmod'), dict(scale=dict(type='evilmod')), SCOPE)
        for change in ({}, *changes):
            text = json.dumps(dict(architecture=dict(plain, head=dict(plain['head'], **change))))
            save_file(net.state_dict(), path, {'pixnerd': text})
            if change:
                with pytest.raises(ValueError, match='head'):
                    load_backbone(path)
            else:
                load_backbone(path)
    finally:
        del MODELS.module_dict['OwnHead']

"""Field files: what is written is read, and what anybody else wrote is refused in one line and within limits."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler, FieldTrajectory, field_file
from tests.limits import limited, refusal

SAMPLER = AdamsFlowSampler(4)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    head = dict(type='NeuralFieldHead', width=8, alignment='centers')
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=2, num_heads=4, patch_size=4, num_classes=5, head=head))
    nn.init.normal_(net.head.proj.weight, std=0.5)
    return net


def record(net, sampler=SAMPLER):
    noise = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    settings = dict(record_field=True, field_dtype=torch.float32)
    return sampler.sample(net, noise, torch.tensor([1, 2]), torch.tensor([5]), **settings)


def test_saved_and_loaded_it_decodes_the_same(net, tmp_path):
    _, field = record(net)
    path = tmp_path / 'field.safetensors'
    field.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.equal(FieldTrajectory.load(path).decode((16, 24)), field.decode((16, 24)))


def test_files_that_are_no_field_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing'):
        FieldTrajectory.load(tmp_path / 'nothing.safetensors')
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(b'12345678901234567890')
    with pytest.raises(ValueError, match='broken'):
        FieldTrajectory.load(broken)


def rewritten(net, path, change):
    """A saved field whose description and tensors ``change`` has altered."""
    record(net)[1].save(path)
    with safe_open(str(path), 'pt') as file:
        description = json.loads(file.metadata()['pixnerd_field'])
    tensors = load_file(path)
    description = change(description, tensors) or description
    save_file(tensors, path, {'pixnerd_field': json.dumps(description)})
    return path


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d, t: [1], 'description'),
        (lambda d, t: d.pop('head') and None, 'its description has no head'),
        (lambda d, t: d.update(head=None), 'head None is none of PixNerd'),
        (
            lambda d, t: d['sampler'].update(num_steps=10**12),
            'num_steps=1000000000000 must be an integer from 1 to 1000',
        ),
        (lambda d, t: d['sampler'].update(unknown=1), "sampler has an entry 'unknown'"),
        (lambda d, t: d['head'].update(width=2**20), 'width=1048576 must be'),
        (lambda d, t: d.update(head=dict(type='LinearHead')), 'head does not fit|only a neural field'),
        (lambda d, t: d.update(token_grid=[4, 3]), 'patch vectors are'),
        (lambda d, t: d.update(token_grid='23'), 'token_grid'),
        (lambda d, t: t.pop('noise') is None, 'noise'),
        (lambda d, t: t.pop('tokens.00001') is None, '3 evaluations'),
        (lambda d, t: t.update({'tokens.00001': torch.zeros(1, 2, 6, 7)}), 'patch vectors are'),
        (lambda d, t: t.pop('head.proj.weight') is None, 'proj.weight'),
    ],
)
def test_damaged_fields_are_refused_in_one_line(net, tmp_path, change, message):
    path = rewritten(net, tmp_path / 'field.safetensors', change)
    with pytest.raises(ValueError, match=message) as error:
        FieldTrajectory.load(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('part', ['head', 'sampler'])
def test_nothing_that_a_file_names_is_run(net, tmp_path, part):
    # mmengine's registry imports what a dotted name points to, and builds it.
    trap = tmp_path / 'trap'
    bomb = dict(type='os.system', command=f'touch {trap}')
    path = rewritten(net, tmp_path / 'field.safetensors', lambda d, t: d.update({part: bomb}))
    with pytest.raises(ValueError, match=f"{part} 'os.system' is none of PixNerd"):
        FieldTrajectory.load(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d, t: d['head'].update(depth='x'), "head: depth='x' must be an integer"),
        (lambda d, t: d['head'].update(operations='os'), "head has an entry 'operations'"),
        (lambda d, t: d.update(patch_size='4'), "patch_size='4' must be an integer"),
        (lambda d, t: d.update(token_grid=[2, 5]), 'no multiple of its token_grid'),
        (lambda d, t: d.update(token_grid=[True, 3]), 'token_grid'),
        (lambda d, t: d.update(extra=1), "an entry 'extra'"),
        (lambda d, t: d['sampler'].update(guidance_interval=[1, 0]), 'guidance_interval'),
        (lambda d, t: d['sampler'].update(guidance_scale=float('nan')), 'NaN is no number'),
        (lambda d, t: d.update(sampler=EulerFlowSampler(3, stochastic=True).config()), 'draws noise at every step'),
        (lambda d, t: t.update(noise=torch.zeros(0, 3, 8, 12)), 'its noise is'),
        (lambda d, t: t.update(noise=torch.zeros(2, 3, 0, 12)), 'its noise is'),
        (lambda d, t: t.update(noise=torch.zeros(2, 3, 8, 12, dtype=torch.int32)), 'its noise is .* of torch.int32'),
        (lambda d, t: t['noise'].view(-1)[5].fill_(float('nan')) is None, 'its noise holds NaN'),
        (lambda d, t: t['tokens.00001'].view(-1)[5].fill_(float('inf')) is None, 'evaluation 1 holds NaN or inf'),
        (lambda d, t: t['head.proj.weight'].view(-1)[5].fill_(float('nan')) is None, 'head.proj.weight holds NaN'),
        (lambda d, t: t.update({'head.proj.bias': t['head.proj.bias'].half()}), 'not of one floating-point type'),
        (lambda d, t: t.update({'head.more': torch.zeros(1)}), "'head.more', which its head has not"),
        (lambda d, t: t.update(more=torch.zeros(1)), "'more', which no field has"),
        (lambda d, t: t.update({'tokens.00009': t.pop('tokens.00003')}), 'patch vectors of 4 evaluations'),
    ],
)
def test_each_entry_is_checked(net, tmp_path, change, message):
    path = rewritten(net, tmp_path / 'field.safetensors', lambda d, t: change(d, t) and None)
    with pytest.raises(ValueError, match=message) as error:
        FieldTrajectory.load(path)
    assert '\n' not in str(error.value)
    assert str(path) in str(error.value)


def test_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'pipe', tmp_path, '/dev/zero'):
        assert 'not a plain file' in refusal(lambda path=path: FieldTrajectory.load(path))


@pytest.mark.parametrize(('held', 'expected'), [(2**30, ''), (0, 'has changed since it was opened')])
def test_a_file_that_is_cut_short_while_it_is_held_does_no_harm(net, tmp_path, monkeypatch, held, expected):
    path = tmp_path / 'field.safetensors'
    # So long that its end is not in the page of its header.
    record(net, AdamsFlowSampler(60))[1].save(path)
    monkeypatch.setattr(field_file, 'HELD_BYTES', held, raising=False)

    def hold():
        field = FieldTrajectory.load(path)
        os.truncate(path, 100)
        return float(field.decode().sum())

    outcome = limited(hold)
    assert not outcome.signal, 'it died of SIGBUS'
    assert expected in outcome.message
    assert bool(expected) == (outcome.error == 'ValueError')


def test_what_is_too_much_for_the_memory_stays_in_the_file(net, tmp_path, monkeypatch):
    path = tmp_path / 'field.safetensors'
    field = record(net)[1]
    field.save(path)
    monkeypatch.setattr(field_file, 'HELD_BYTES', 100)
    stored = FieldTrajectory.load(path)
    assert isinstance(stored.tokens, field_file.StoredTokens)
    assert torch.equal(stored.decode((16, 24)), field.decode((16, 24)))
    assert torch.equal(stored.picture(1).decode(), field.picture(1).decode())
    stored.save(tmp_path / 'copy.safetensors')
    assert (tmp_path / 'copy.safetensors').read_bytes() == path.read_bytes()


def test_the_most_steps_that_a_file_may_ask_for_are_soon_counted(net, tmp_path):
    sampler = AdamsFlowSampler(1000, order=4, timeshift=1e6)
    path = rewritten(net, tmp_path / 'field.safetensors', lambda d, t: d.update(sampler=sampler.config()))
    assert 'its sampler makes 1000' in refusal(lambda: FieldTrajectory.load(path))
    path = rewritten(net, path, lambda d, t: d['sampler'].update(num_steps=10_000, order=4))
    assert 'num_steps=10000 must be an integer from 1 to 1000' in refusal(lambda: FieldTrajectory.load(path))


def test_a_field_that_never_ends_is_not_read(net, tmp_path):
    """A hole of 256 GiB in the place of the patch vectors costs nothing to make."""
    path = tmp_path / 'field.safetensors'
    record(net)[1].save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    width = 2**36 // (2 * 2 * 6)
    header['tokens.00003'].update(shape=[2, 2, 6, width], data_offsets=[0, 2 * 2 * 6 * width * 4])
    position = header['tokens.00003']['data_offsets'][1]
    for name, entry in header.items():
        if name not in ('__metadata__', 'tokens.00003'):
            size = entry['data_offsets'][1] - entry['data_offsets'][0]
            entry['data_offsets'] = [position, position + size]
            position += size
    text = json.dumps(header).encode()
    with open(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.truncate(8 + len(text) + position)
    refusal(lambda: FieldTrajectory.load(path))


def test_loading_takes_little_more_memory_than_the_file(net, tmp_path):
    path = rewritten(
        net,
        tmp_path / 'field.safetensors',
        lambda d, t: t.update(noise=torch.randn(2, 3, 2048, 1200), **{'tokens.00000': torch.randn(2, 2, 6, 32)}),
    )
    size = path.stat().st_size
    assert size > 50e6
    outcome = limited(lambda: FieldTrajectory.load(path).noise.shape[2], size, extra=40 * 10**6)
    assert outcome.value == 2048, outcome


def test_features_that_only_decoding_would_pay_for_are_refused(net, tmp_path):
    """64 KB of weights asked for 400 MB of features at the sampled size, and for any number at a larger one."""

    def many(description, tensors):
        description['head'].update(num_frequencies=1000, coordinates='dct', width=1)
        tensors['head.coord_embed.weight'] = torch.zeros(1, 10**6)

    path = rewritten(net, tmp_path / 'field.safetensors', many)
    assert 'its head has 1000000 features of each of the 16 pixels' in refusal(lambda: FieldTrajectory.load(path))

"""The end ``r`` of a step as an input of the network."""

import pytest
import torch

from pixnerd_plugin.checkpoints import load_backbone
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.registry import MODELS
from tests.golden import network, read
from tests.models.test_mean_flow import TEXT_DIM, build_net


@pytest.mark.parametrize('kind', ['class', 'text'])
def test_without_training_it_gives_what_the_network_gave_to_the_bit(kind):
    plain = build_net(kind, step_end=False)
    net = MODELS.build({**plain.architecture(), 'step_end': True})
    missing = net.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split('.')[0] for name in missing} == {'step_embed'}
    x, t, r = torch.randn(2, 3, 8, 8), torch.rand(2), torch.ones(2)
    cond = torch.tensor([1, 5]) if kind == 'class' else torch.randn(2, 3, TEXT_DIM)
    with torch.no_grad():
        expected = plain(x, t, cond)
        assert torch.equal(net(x, t, cond), expected)
        assert torch.equal(net(x, t, cond, r=r), expected)
        torch.nn.init.normal_(net.step_embed.fc2.weight)
        assert not torch.allclose(net(x, t, cond, r=r), expected)
        # No r is r = t.
        assert torch.equal(net(x, t, cond), net(x, t, cond, r=t))


def test_published_networks_are_as_they_were():
    net, golden = network('c2i_tiny'), read('c2i_tiny')
    assert 'step_end' not in net.architecture()
    assert not any('step' in name for name in net.state_dict())
    with pytest.raises(ValueError, match='takes no r'):
        net(golden['x'], golden['t'], golden['y'], r=golden['t'])


def test_conditioning_computed_ahead_has_the_end_in_it():
    net = build_net()
    x, t, r, cond = torch.randn(2, 3, 8, 8), torch.rand(2), torch.ones(2), torch.tensor([0, 3])
    ahead = net.condition(t, cond, x.dtype, r)
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, cond, conditioning=ahead), net(x, t, cond, r=r))


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_files_keep_it(tmp_path, suffix):
    net = build_net()
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in net.state_dict().items()}), tmp_path / 'net.pth')
    convert(tmp_path / 'net.pth', tmp_path / f'out{suffix}')
    again = load_backbone(tmp_path / f'out{suffix}')
    assert again.architecture()['step_end'] is True
    assert all(torch.equal(again.state_dict()[name], value) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r'no form in the published layout: unexpected step_embed\.fc1'):
        convert(tmp_path / 'net.pth', tmp_path / 'out.ckpt')

"""Networks that predict the image: the velocity it means, the same everywhere."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixnerd_plugin import load_backbone, load_pipeline
from pixnerd_plugin.checkpoints.convert import convert
from pixnerd_plugin.functional.patches import to_patches
from pixnerd_plugin.functional.prediction import to_velocity, true_velocity
from pixnerd_plugin.models.losses import FlowMatchREPALoss
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling import AdamsFlowSampler, EulerFlowSampler, FieldTrajectory, HeunFlowSampler
from tests.golden import relative_error


class Knowing(nn.Module):
    """A head that gives the image it was told of, whatever it sees."""

    def __init__(self, image, grid=(1, 1)):
        super().__init__()
        self.patches = to_patches(image, grid)

    def forward(self, s, pixels, positions=None, chunk=None):
        return self.patches.expand_as(pixels)


def build(head=None, **more):
    torch.manual_seed(0)
    head = head or dict(type='NeuralFieldHead', width=8, alignment='centers')
    net = MODELS.build(
        dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=4, num_classes=5, head=head, **more)
    )
    if hasattr(net.head, 'proj'):
        nn.init.normal_(net.head.proj.weight, std=0.5)
    return net


def save(path, net, architecture):
    save_file(net.state_dict(), path, dict(pixnerd=json.dumps(dict(architecture=architecture))))
    return path


def test_the_velocity_leads_to_the_image_and_is_clamped_near_it():
    x, image = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    t = torch.tensor([0.0, 0.5, 0.99])
    velocity = to_velocity(image, x, t, 'image')
    left = torch.tensor([1.0, 0.5, 0.05]).view(3, 1, 1, 1)
    torch.testing.assert_close(x + left * velocity, image)
    assert to_velocity(image, x, t, 'velocity') is image
    torch.testing.assert_close(to_velocity(image, x, 0.99, 'image')[2], velocity[2])


def test_the_loss_of_the_true_image_is_zero_at_every_time_and_gradients_flow():
    images, noise, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.3, 0.98])
    loss = FlowMatchREPALoss(align_layer=1, cond_drop_prob=0.0, dim=32, projector_dim=8, teacher_dim=4)
    exact = build(Knowing(images), prediction='image')
    assert loss(exact, images, torch.tensor([0, 1]), noise=noise, t=t)['loss_flow'] < 1e-10
    assert loss.per_image['loss_flow'].max() < 1e-10
    # The closed form, clamp included: the velocity of x^ and that of x differ by (x^ - x) / max(1 - t, 0.05).
    wrong = build(Knowing(images + 0.1), prediction='image')
    loss(wrong, images, torch.tensor([0, 1]), noise=noise, t=t)
    torch.testing.assert_close(loss.per_image['loss_flow'], (0.1 / torch.tensor([0.7, 0.05])) ** 2)
    plain = true_velocity(images, noise, t, 'image')
    torch.testing.assert_close(plain[0], images[0] - noise[0])
    torch.testing.assert_close(plain[1], (images[1] - noise[1]) * 0.02 / 0.05)

    net = build(prediction='image')
    dense = FlowMatchREPALoss(align_layer=1, dim=32, projector_dim=8, teacher_dim=4, max_density=2)
    dense(net, torch.randn(2, 3, 16, 16), torch.tensor([0, 1]), torch.tensor([5]))['loss_flow'].backward()
    assert net.head.generator.weight.grad.any()


@pytest.mark.parametrize('sampler', [EulerFlowSampler(4), HeunFlowSampler(3), AdamsFlowSampler(4, order=1)])
def test_sampling_a_network_that_knows_the_image_gives_it(sampler):
    image = torch.randn(1, 3, 8, 8)
    net = build(Knowing(image, (2, 2)), prediction='image')
    drawn = sampler.sample(net, torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([5]))
    torch.testing.assert_close(drawn, image.expand_as(drawn), atol=1e-4, rtol=0)


@pytest.mark.parametrize('sampler', [AdamsFlowSampler(4), HeunFlowSampler(3)])
def test_decoding_the_field_gives_the_sampled_picture(tmp_path, sampler):
    net = build(prediction='image')
    noise = torch.randn(2, 3, 8, 12)
    settings = dict(record_field=True, field_dtype=torch.float32)
    image, field = sampler.sample(net, noise, torch.tensor([1, 2]), torch.tensor([5]), **settings)
    assert relative_error(field.decode(), image) < 1e-5
    assert relative_error(field.picture(1).decode(), image[1:]) < 1e-5
    field.save(tmp_path / 'field.safetensors')
    loaded = FieldTrajectory.load(tmp_path / 'field.safetensors')
    assert torch.equal(loaded.decode((16, 24)), field.decode((16, 24)))
    # Without a recorder the network is asked in one call.
    plain = sampler.sample(net, noise, torch.tensor([1, 2]), torch.tensor([5]))
    assert relative_error(plain, image) < 1e-5
    # Blending averages images as it averages velocities.
    fine = dict(token_grid=(2, 3), blend=0.5, **settings)
    image, field = sampler.sample(net, torch.randn(2, 3, 16, 18), torch.tensor([1, 2]), torch.tensor([5]), **fine)
    assert relative_error(field.decode(), image) < 1e-5


def test_decode_wants_the_time_and_a_misspelt_prediction_is_named():
    net = build(prediction='image')
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.4])
    s, _ = net.encode(x, t, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"decode needs t, .* because prediction='image'"):
        net.decode(s, x, (2, 2))
    torch.testing.assert_close(net.decode(s, x, (2, 2), t=t), net(x, t, torch.tensor([0])))
    with pytest.raises(ValueError, match="prediction='noise' is not known"):
        build(prediction='noise')


def test_files_say_what_is_predicted_and_older_ones_mean_the_velocity(tmp_path):
    net = build(prediction='image')
    architecture = net.architecture()
    assert architecture['prediction'] == 'image'
    path = save(tmp_path / 'a.safetensors', net, architecture)
    for name in ('b.pth', 'c.ckpt', 'd.safetensors'):
        convert(path, tmp_path / name, layout='published' if name[0] == 'c' else None)
        assert load_backbone(tmp_path / name).architecture() == architecture
        path = tmp_path / name
    pipe = load_pipeline(path, device='cpu')
    x, t, cond = torch.randn(1, 3, 8, 8), torch.tensor([0.4]), torch.tensor([0])
    torch.testing.assert_close(pipe.net(x, t, cond), net(x, t, cond))
    del architecture['prediction']
    older = save(tmp_path / 'older.safetensors', net, architecture)
    assert load_backbone(older).prediction == 'velocity'

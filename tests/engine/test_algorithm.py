from functools import partial

import pytest
import torch
from torch import nn

from pixnerd_plugin.engine.algorithm import PixNerd
from pixnerd_plugin.functional.noise import draw_noise, image_generators

BACKBONE = dict(
    type='PixNerdDiT',
    dim=16,
    depth=1,
    num_heads=2,
    patch_size=8,
    num_classes=10,
    head=dict(type='NeuralFieldHead', width=4, depth=1),
)
LOSS = dict(type='FlowMatchREPALoss', dim=16, projector_dim=16, teacher_dim=16, align_layer=1)


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images):
        return torch.ones(len(images), images.shape[-2] * images.shape[-1] // 64, 16)


def model(**options):
    torch.manual_seed(0)
    parts = dict(
        backbone=BACKBONE,
        conditioner=dict(type='LabelConditioner', num_classes=10),
        loss=LOSS,
        sampler=dict(type='EulerFlowSampler', num_steps=2),
    )
    net = PixNerd(**parts | options)
    # The field's last layer starts at zero, which would hide what goes in.
    nn.init.normal_(net.backbone.head.proj.weight)
    return net


def batch(size=(16, 24), count=3):
    inputs = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return dict(inputs=inputs, data_samples=dict(label=torch.arange(count), seed=torch.arange(count)))


def test_pixels_reach_the_network_in_minus_one_to_one():
    data = batch()
    data['inputs'][0, 0, 0, :2] = torch.tensor([0, 255])
    images = model().data_preprocessor(data, training=True)['inputs']
    assert images[0, 0, 0, :2].tolist() == [-1, 1]
    assert images.shape == (3, 3, 16, 24)


def test_the_losses_reach_every_trainable_parameter():
    net = model(loss=dict(LOSS, teacher=Teacher()))
    losses = net(**net.data_preprocessor(batch()), mode='loss')
    assert losses.keys() == {'loss_flow', 'loss_repa'}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_no_teacher_leaves_no_parameter_without_gradient():
    net = model()
    sum(net(**net.data_preprocessor(batch()), mode='loss').values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_the_state_holds_backbone_and_projector_only():
    net = model(loss=dict(LOSS, teacher=Teacher()))
    assert {name.split('.')[0] for name in net.state_dict()} == {'backbone', 'loss'}
    assert not any('teacher' in name for name in net.state_dict())


def test_a_picture_depends_on_its_seed_and_label_only():
    net = model()
    data = net.data_preprocessor(batch())
    together = net(**data, mode='predict')
    alone = net(data['inputs'][2:] * 0, dict(label=torch.tensor([2]), seed=torch.tensor([2])), mode='predict')
    assert together.shape == (3, 3, 16, 24)
    torch.testing.assert_close(together[2:], alone)


def test_noise_can_be_given():
    net = model()
    data = batch(count=2)
    noise = draw_noise(image_generators([0, 1]), (3, 16, 24))
    given = net(noise, dict(label=torch.arange(2), noise=noise), mode='predict')
    seeded = net(**net.data_preprocessor(data), mode='predict')
    assert torch.equal(given, seeded)


def test_mode_tensor_gives_the_velocity():
    net = model()
    x, t, label = torch.randn(2, 3, 16, 16), torch.rand(2), torch.tensor([1, 2])
    assert torch.equal(net(x, dict(label=label, t=t), mode='tensor'), net.backbone(x, t, label))


def test_parts_may_be_given_built_and_keep_their_weights():
    backbone = model().backbone
    before = backbone.patch_embed.weight.detach().clone()
    net = model(backbone=backbone)
    net.init_weights()
    assert net.backbone is backbone
    assert torch.equal(backbone.patch_embed.weight, before)


@pytest.mark.parametrize(('part', 'mode'), [('loss', 'loss'), ('sampler', 'predict')])
def test_a_missing_part_is_named(part, mode):
    net = model(**{part: None})
    with pytest.raises(ValueError, match=f'set model.{part}'):
        net(**net.data_preprocessor(batch()), mode=mode)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="got 'train'"):
        model()(torch.zeros(1, 3, 16, 16), mode='train')


@pytest.mark.parametrize('checkpoint', [False, True])
def test_training_compiles_without_a_graph_break_to_the_same_gradients(monkeypatch, checkpoint):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager', fullgraph=True))
    parts = dict(backbone=dict(BACKBONE, checkpoint=checkpoint), loss=dict(LOSS, teacher=Teacher()))
    eager, compiled = model(**parts), model(**parts, compile=True)
    for net in (eager, compiled):
        torch.manual_seed(1)
        sum(net(**net.data_preprocessor(batch()), mode='loss').values()).backward()
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_compiling_keeps_the_names_of_the_weights():
    assert model(compile=True).state_dict().keys() == model().state_dict().keys()


def test_a_way_of_compiling_that_is_not_known_is_one_line():
    with pytest.raises(ValueError, match="compile='blocks' is not known; use True, False or 'regional'"):
        model(compile='blocks')

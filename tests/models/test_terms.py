"""Terms of the loss besides flow matching and alignment."""

import pytest
import torch
from torch import nn

from pixnerd_plugin.models.losses import FlowMatchREPALoss, PerceptualLoss
from pixnerd_plugin.registry import MODELS
from tests.models.test_teachers import CONFIG

EXTRACTOR = dict(type='DINOv2Teacher', config=CONFIG, patch_size=8)


def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 3, 16, 24, generator=generator).unbind()


def test_the_perceptual_term_compares_features_of_the_implied_images():
    target, x_t, other = pictures()
    t = torch.tensor([0.6, 0.9, 0.3])
    term = PerceptualLoss(EXTRACTOR, t_min=0.5)
    velocity = other.requires_grad_()
    distance = term(velocity, target, x_t, t)
    extractor = MODELS.build(EXTRACTOR)
    left = (1 - t).view(3, 1, 1, 1)
    drawn, true = extractor(x_t + left * velocity), extractor(x_t + left * target)
    expected = (1 - torch.cosine_similarity(drawn, true, dim=-1)).mean(1)
    torch.testing.assert_close(distance[:2], expected[:2])
    assert distance[2] == 0
    distance.sum().backward()
    assert velocity.grad[:2].flatten(1).any(1).all()
    assert not velocity.grad[2].any()
    assert term(target, target, x_t, t).abs().max() < 1e-6
    assert not term.state_dict()
    assert not list(term.parameters())


def test_it_is_a_term_like_any_other_and_told_by_picture():
    torch.manual_seed(0)
    net = MODELS.build(dict(type='PixNerdDiT', dim=32, depth=1, num_heads=4, patch_size=8, num_classes=5))
    nn.init.normal_(net.head.proj.weight)
    term = dict(type='PerceptualLoss', weight=0.3, t_min=0.2, extractor=EXTRACTOR)
    loss = FlowMatchREPALoss(align_layer=1, cond_drop_prob=0, dim=32, projector_dim=8, teacher_dim=4, terms=[term])
    images = torch.randn(2, 3, 16, 24)
    losses = loss(net, images, torch.tensor([0, 1]), t=torch.tensor([0.1, 0.7]))
    assert losses.keys() == {'loss_flow', 'loss_perceptual'}
    of_each = loss.per_image['loss_perceptual']
    assert of_each[0] == 0
    assert 0 < of_each[1] < 0.6
    torch.testing.assert_close(of_each.mean(), losses['loss_perceptual'].detach())
    losses['loss_perceptual'].backward()
    assert net.head.generator.weight.grad.any()


@pytest.mark.parametrize('setting', [dict(max_density=2), dict(overlap=1.0)])
def test_it_does_not_go_with_pixels_of_finer_pictures(setting):
    with pytest.raises(ValueError, match='PerceptualLoss compares whole pictures, and max_density='):
        FlowMatchREPALoss(terms=[PerceptualLoss(EXTRACTOR)], **setting)


def test_the_classifier_of_a_study_serves_as_extractor(tmp_path):
    from pixnerd_plugin.evaluation.classifier import SmallConvNet, save_classifier

    save_classifier(SmallConvNet(10).eval(), tmp_path / 'a.safetensors', class_names=['a'] * 10, size=(16, 24))
    target, x_t, velocity = pictures()
    extractor = dict(type='ClassifierTeacher', weights=str(tmp_path / 'a.safetensors'), patch_size=8)
    PerceptualLoss(extractor)(velocity.requires_grad_(), target, x_t, torch.full((3,), 0.7)).sum().backward()
    assert velocity.grad.any()


def test_a_time_out_of_range_is_named():
    with pytest.raises(ValueError, match='t_min'):
        PerceptualLoss(EXTRACTOR, t_min=1.5)

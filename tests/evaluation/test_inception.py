"""Inception's features and the metrics against torch-fidelity, an independent implementation, on random weights."""

import sys
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F

from pixnerd_plugin.evaluation.inception import InceptionFeatures, import_network
from pixnerd_plugin.evaluation.metrics import Statistics, frechet_distance, inception_score, precision_recall

try:
    import_network()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Random weights in the layout of the published file."""
    network = import_network()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network.torch, 'load', lambda *args, **kwargs: None)
        patch.setattr(network.nn.Module, 'load_state_dict', lambda self, state: None)
        net = network.FeatureExtractorInceptionV3('inception', ['2048'], feature_extractor_weights_path='none')
    path = tmp_path_factory.mktemp('inception') / 'inception.pth'
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def fidelity(monkeypatch):
    """The whole of torch-fidelity, a stand-in in torchvision's place, which no metric calls."""
    for name in ('', '.datasets', '.transforms', '.transforms.functional'):
        monkeypatch.setitem(sys.modules, f'torchvision{name}', MagicMock())
    before = set(sys.modules)
    import torch_fidelity
    from torch_fidelity import metric_fid, metric_isc, metric_prc

    yield torch_fidelity, metric_fid, metric_isc, metric_prc
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.slow
def test_features_need_no_torchvision_and_equal_torch_fidelitys(weights, monkeypatch, fidelity):
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    independent = fidelity[0].FeatureExtractorInceptionV3(
        'inception', ['2048', 'logits_unbiased'], feature_extractor_weights_path=weights
    )
    pool, logits = independent(images)
    # The spatial features step by step: everything up to Mixed_6d, resized as TensorFlow 1 does.
    resize = sys.modules['torch_fidelity.interpolate_compat_tensorflow'].interpolate_bilinear_2d_like_tensorflow1x
    x = (resize(images.float(), size=(299, 299), align_corners=False) - 128) / 128
    for name in (
        *('Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'MaxPool_1', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3'),
        *('MaxPool_2', 'Mixed_5b', 'Mixed_5c', 'Mixed_5d', 'Mixed_6a', 'Mixed_6b', 'Mixed_6c', 'Mixed_6d'),
    ):
        x = getattr(independent, name)(x)
    for name in [name for name in sys.modules if name.split('.')[0] in ('torch_fidelity', 'torchvision')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'torchvision', None)  # importing it fails

    features = InceptionFeatures(weights)(images)
    torch.testing.assert_close(features.pool, pool)
    torch.testing.assert_close(features.logits, logits)
    assert features.spatial.shape == (2, 2023)
    torch.testing.assert_close(features.spatial, x[:, :7].permute(0, 2, 3, 1).reshape(2, -1))


def test_the_metrics_equal_torch_fidelitys(fidelity):
    _, metric_fid, metric_isc, metric_prc = fidelity
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 20, generator=generator, dtype=torch.float64)
    b = F.silu(torch.randn(200, 20, generator=generator, dtype=torch.float64)) + a[:200].flip(0)
    theirs = metric_fid.fid_statistics_to_metric(*map(metric_fid.fid_features_to_statistics, (a, b)), verbose=False)
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(*theirs.values(), rel=1e-8)
    theirs = metric_isc.isc_features_to_metric(a, splits=3, shuffle=False)
    assert inception_score(a, split_size=100) == pytest.approx(theirs['inception_score_mean'])
    theirs = metric_prc.prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    assert precision_recall(a, b) == pytest.approx((theirs['precision'], theirs['recall']))


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match='PIXNERD_INCEPTION'):
        InceptionFeatures(tmp_path / 'gone.pth')
    torch.save({'a': torch.zeros(1)}, tmp_path / 'other.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'other.pth').read_bytes()[:-100])
    for name, message in {'other': 'is not pt_inception', 'cut': 'is damaged or not pt_inception'}.items():
        with pytest.raises(ValueError, match=message) as raised:
            InceptionFeatures(tmp_path / f'{name}.pth')(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        assert '\n' not in str(raised.value)

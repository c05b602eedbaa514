"""Samples against references: folders, npz with pictures, statistics; and every mistake in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixnerd_plugin.evaluation.classifier import accuracy, save_classifier, train_classifier
from pixnerd_plugin.evaluation.pictures import TensorImages, load_all, open_images
from pixnerd_plugin.evaluation.quality import extract, measure, open_reference
from pixnerd_plugin.registry import MODELS
from tests.evaluation.fakes import TinyFeatures, pictures, save_npz, statistics

SIZE = (8, 8)


@pytest.fixture
def npz(tmp_path):
    return save_npz(tmp_path / 'samples.npz', arr_0=pictures(60))


def test_a_reference_of_pictures_and_one_of_its_statistics_agree(tmp_path, npz):
    known = pictures(50, seed=1)
    folder = tmp_path / 'known/class'
    folder.mkdir(parents=True)
    for index, image in enumerate(known):
        Image.fromarray(image).save(folder / f'{index:03d}.png')
    extractor = TinyFeatures('Inception')
    both = save_npz(tmp_path / 'both.npz', arr_0=known, **statistics(known))
    references = dict(
        folder=str(folder.parent),
        pictures=save_npz(tmp_path / 'known.npz', arr_0=known),
        both=both,
        statistics=save_npz(tmp_path / 'statistics.npz', **statistics(known)),
    )
    found = {
        name: measure(open_images(npz), open_reference(where, SIZE, extractor), extractor, batch_size=7)
        for name, where in references.items()
    }
    assert set(found['folder']) == {'FID', 'sFID', 'IS', 'precision', 'recall'}
    assert found['folder'] == found['pictures']
    assert found['both'] == pytest.approx(found['pictures'], rel=1e-5)
    # Without pictures there are no neighbours to count.
    assert found['statistics'] == pytest.approx({key: found['both'][key] for key in ('FID', 'sFID', 'IS')})


def test_only_inceptions_distance_is_called_fid(npz):
    extractor = TinyFeatures()
    results = measure(open_images(npz), open_reference(npz, SIZE, extractor), extractor)
    assert results['Frechet distance'] == pytest.approx(0, abs=1e-6)
    assert results['precision'] == results['recall'] == 1
    assert 'FID' not in results


def test_shares_of_processes_make_the_whole(npz):
    whole = open_images(npz)
    parts = [list(whole.batches(7, rank, 3)) for rank in range(3)]
    joined = torch.cat([parts[index % 3][index // 3] for index in range(9)])
    assert torch.equal(joined, torch.from_numpy(pictures(60).transpose(0, 3, 1, 2)))


def test_adms_crop_brings_a_folder_to_size(tmp_path):
    for index, shape in enumerate([(20, 16), (16, 30), (8, 8)]):
        (tmp_path / 'a').mkdir(exist_ok=True)
        Image.new('RGB', shape, (index, 0, 0)).save(tmp_path / 'a' / f'{index}.png')
    images, labels = load_all(open_images(tmp_path, SIZE, center_crop=True))
    assert images.shape == (3, 3, 8, 8)
    assert labels.tolist() == [0, 0, 0]


def mistakes(tmp_path):
    """What goes wrong, and what the one line must say."""
    images = pictures(60)
    good = save_npz(tmp_path / 'good.npz', arr_0=images)
    cut = tmp_path / 'cut.npz'
    cut.write_bytes((tmp_path / 'good.npz').read_bytes()[:-200])
    flipped = tmp_path / 'flipped.npz'
    data = bytearray((tmp_path / 'good.npz').read_bytes())
    data[5000] ^= 255
    flipped.write_bytes(data)
    mixed = tmp_path / 'mixed/a'
    mixed.mkdir(parents=True)
    for side in (8, 9):
        Image.new('RGB', (8, side)).save(mixed / f'{side}.png')
    np.savez_compressed(tmp_path / 'packed.npz', arr_0=np.zeros_like(images))
    packed = bytearray((tmp_path / 'packed.npz').read_bytes())
    packed[60:90] = bytes(30)
    (tmp_path / 'packed.npz').write_bytes(packed)
    whole = statistics(images)
    save_npz(tmp_path / 'sigma.npz', **whole)
    numbers = bytearray((tmp_path / 'sigma.npz').read_bytes())
    numbers[numbers.index(b'sigma.npy') + 300] ^= 255
    (tmp_path / 'sigma.npz').write_bytes(numbers)
    broken = statistics(images)
    broken['sigma'] = np.where(np.eye(12) == 1, np.nan, broken['sigma'])
    return {
        'another size': (save_npz(tmp_path / 'large.npz', arr_0=pictures(60, 16)), 'large.npz are 16x16, and .* 8x8'),
        'too few': (
            save_npz(tmp_path / 'few.npz', arr_0=images[:12]),
            'has 12 pictures. With no more than 12, .* means nothing: give at least 13',
        ),
        'half-written': (str(cut), 'cut.npz is half-written'),
        'damaged': (str(flipped), 'flipped.npz is damaged: Bad CRC-32'),
        'damaged and packed': (str(tmp_path / 'packed.npz'), 'packed.npz is (damaged|half-written)'),
        'damaged statistics': (str(tmp_path / 'sigma.npz'), 'sigma in .*sigma.npz is damaged: Bad CRC-32'),
        'spatial statistics of another width': (
            save_npz(tmp_path / 's.npz', **dict(whole, mu_s=np.zeros(7), sigma_s=np.eye(7))),
            'mu_s in .*s.npz is 7 wide, and the spatial features are 6',
        ),
        'spatial statistics that do not fit': (
            save_npz(tmp_path / 't.npz', **dict(whole, sigma_s=np.eye(5))),
            r'mu_s \(6,\) and sigma_s \(5, 5\), which do not fit',
        ),
        'not finite': (save_npz(tmp_path / 'nan.npz', **broken), 'sigma in .*nan.npz holds NaN or infinity'),
        'other statistics': (save_npz(tmp_path / 'mu.npz', mu=np.zeros(3)), r'needs mu \(12,\) and sigma \(12, 12\)'),
        'floats': (save_npz(tmp_path / 'float.npz', arr_0=images / 255.0), 'float64 .* uint8'),
        'neither': (save_npz(tmp_path / 'x.npz', x=images), 'neither pictures .* nor statistics'),
        'absent': (str(tmp_path / 'gone.npz'), 'gone.npz is neither a folder of pictures nor an npz'),
        'mixed sizes': (str(mixed.parent), '9x8 .* 8x8'),
    }, good


@pytest.mark.parametrize(
    'name',
    ['another size', 'too few', 'half-written', 'damaged', 'damaged and packed', 'damaged statistics',
     'spatial statistics of another width', 'spatial statistics that do not fit', 'not finite', 'other statistics',
     'floats', 'neither', 'absent', 'mixed sizes'],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path, name):
    cases, good = mistakes(tmp_path)
    where, message = cases[name]
    extractor = TinyFeatures('Inception')
    if name == 'mixed sizes':
        extractor.dim = 1
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        measure(open_images(good), open_reference(where, SIZE, extractor), extractor)
    assert '\n' not in str(raised.value)


def test_statistics_are_of_inception_features(tmp_path):
    where = save_npz(tmp_path / 'statistics.npz', **statistics(pictures(60)))
    with pytest.raises(ValueError, match='are of Inception features, and the feature extractor is tiny'):
        open_reference(where, SIZE, TinyFeatures())


def test_too_few_samples_are_refused(tmp_path, npz):
    few = save_npz(tmp_path / 'few.npz', arr_0=pictures(10))
    extractor = TinyFeatures()
    with pytest.raises(ValueError, match=r'samples .*few.npz has 10 pictures'):
        measure(open_images(few), open_reference(npz, SIZE, extractor), extractor)


def test_features_that_are_not_finite_name_the_pictures(npz):
    class Broken(TinyFeatures):
        def __call__(self, images):
            features = super().__call__(images)
            features.pool[-1] = float('nan')
            return features

    with pytest.raises(FloatingPointError, match='tiny gives NaN or infinity for one of the pictures 0 to 19'):
        extract(open_images(npz), Broken(), 20)


def test_a_classifier_of_ones_own_scores_accuracy(tmp_path):
    (images, labels), (test_images, test_labels) = (
        load_all(open_images(f'digits:{split}', SIZE)) for split in ('train', 'test')
    )
    net = train_classifier(images, labels, 10, steps=150)
    share = accuracy(net, test_images, test_labels)
    assert share > 0.9
    save_classifier(net, tmp_path / 'net.safetensors', class_names=list('0123456789'), size=SIZE, accuracy=share)
    extractor = MODELS.build(dict(type='ClassifierFeatures', weights=tmp_path / 'net.safetensors'))
    known = open_reference('digits:train', SIZE, extractor)
    real = TensorImages('real', test_images, test_labels)
    results = measure(real, known, extractor)
    assert results['accuracy'] == pytest.approx(share)
    shuffled = TensorImages('shuffled', test_images, test_labels.flip(0))
    assert measure(shuffled, known, extractor)['accuracy'] < 0.3
    drawn = torch.randint(0, 256, test_images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = TensorImages('noise', drawn)
    worse = measure(noise, known, extractor)
    assert worse['Frechet distance'] > 10 * results['Frechet distance']
    # By the classifier's features, some noise lies among the digits; no digit lies among the noise.
    assert worse['precision'] < 0.8 * results['precision']
    assert worse['recall'] < 0.1 < 0.8 < results['recall']

    teacher = MODELS.build(dict(type='ClassifierTeacher', weights=tmp_path / 'net.safetensors', patch_size=4))
    tokens = teacher(test_images[:3].float() / 127.5 - 1)
    assert tokens.shape == (3, 4, extractor.dim)
    with pytest.raises(ValueError, match='trained on 8x8 pictures, and these are 16x16'):
        extractor(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    any_size = MODELS.build(dict(type='ClassifierFeatures', weights=tmp_path / 'net.safetensors', any_size=True))
    assert torch.equal(any_size(test_images[:5]).pool, extractor(test_images[:5]).pool)
    assert any_size(torch.zeros(2, 3, 4, 12, dtype=torch.uint8)).pool.shape == (2, extractor.dim)

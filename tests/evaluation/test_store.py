"""Samples survive interruption, and their npz is numpy's."""

import numpy as np
import pytest

from pixnerd_plugin.evaluation.store import SampleStore
from tests.evaluation.fakes import pictures

RUN = dict(weights='abc', seed=0, size=(4, 4))


@pytest.fixture
def images():
    return pictures(23, 4)


def test_what_is_there_is_not_drawn_again(tmp_path, images):
    store = SampleStore(tmp_path, RUN, len(images))
    store.claim()
    first = store.missing(5)
    assert [len(numbers) for numbers in first] == [5, 5, 5, 5, 3]
    for numbers in (first[0], first[3]):
        store.write(numbers, images[numbers.start : numbers.stop])
    with pytest.raises(ValueError, match='pictures 5 to 14 are missing'):
        store.finish()

    resumed = SampleStore(tmp_path, RUN, len(images))
    resumed.claim()
    left = resumed.missing(4)
    assert sorted(n for numbers in left for n in numbers) == [*range(5, 15), *range(20, 23)]
    for numbers in left:
        resumed.write(numbers, images[numbers.start : numbers.stop])
    resumed.finish()
    with np.load(tmp_path / 'samples.npz') as archive:
        assert archive.files == ['arr_0']
        np.testing.assert_array_equal(archive['arr_0'], images)
        assert archive['arr_0'].dtype == np.uint8
    assert sorted(path.name for path in tmp_path.iterdir()) == ['samples.json', 'samples.npz']
    assert SampleStore(tmp_path, RUN, len(images)).is_complete()
    assert not SampleStore(tmp_path, RUN, 50).is_complete()


def test_a_smaller_total_takes_the_first_and_loses_nothing(tmp_path, images):
    store = SampleStore(tmp_path, RUN, len(images))
    store.claim()
    for numbers in store.missing(6)[:3]:
        store.write(numbers, images[numbers.start : numbers.stop])
    smaller = SampleStore(tmp_path, RUN, 10)
    smaller.claim()
    smaller.finish()
    np.testing.assert_array_equal(np.load(tmp_path / 'samples.npz')['arr_0'], images[:10])
    assert SampleStore(tmp_path, RUN, len(images)).missing(6) == [range(18, 23)]


def test_a_larger_total_is_added_to_and_a_whole_file_never_shrinks(tmp_path, images):
    for total, drawn in ((10, [range(0, 10)]), (len(images), [range(10, 16), range(16, 22), range(22, 23)]), (4, [])):
        store = SampleStore(tmp_path, RUN, total)
        store.claim()
        missing = store.missing(10 if total == 10 else 6)
        assert missing == drawn
        for numbers in missing:
            store.write(numbers, images[numbers.start : numbers.stop])
        store.finish()
    np.testing.assert_array_equal(np.load(tmp_path / 'samples.npz')['arr_0'], images)


def test_a_damaged_file_is_named(tmp_path, images):
    (tmp_path / 'samples.npz').write_bytes(b'PK half an archive')
    with pytest.raises(ValueError, match=r'samples\.npz is half-written or no npz'):
        SampleStore(tmp_path, RUN, 5).claim()


def test_samples_of_other_settings_are_not_mixed_in(tmp_path, images):
    store = SampleStore(tmp_path, RUN, 5)
    store.claim()
    store.write(range(5), images[:5])
    with pytest.raises(ValueError, match='holds samples of another run: seed was 0 and is now 7'):
        SampleStore(tmp_path, dict(RUN, seed=7), 5).claim()
    assert SampleStore(tmp_path, RUN, 5).missing(5) == []
    other = SampleStore(tmp_path, dict(RUN, seed=7), 5, overwrite=True)
    other.claim()
    assert other.missing(5) == [range(5)]


def test_leftovers_of_a_killed_process_are_removed(tmp_path, images):
    store = SampleStore(tmp_path, RUN, 5)
    store.claim()
    (store.parts / '.tmp-1-00000000_00000005.npy').write_bytes(b'half')
    store.claim()
    assert list(store.parts.iterdir()) == []

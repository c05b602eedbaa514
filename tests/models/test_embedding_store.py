import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from pixnerd_plugin.datasets.transforms import LoadTextEmbedding
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore
from tests.limits import limited, refusal

SETTINGS = {'max_length': '4'}


@pytest.fixture
def folder(tmp_path):
    store = TextEmbeddingStore(tmp_path)
    for shard in range(3):
        captions = [f'caption {shard} {row}' for row in range(5)]
        embeds = torch.full((5, 4, 2), shard) + torch.arange(5).view(5, 1, 1) / 10
        store.write(f'part-{shard}', captions, embeds.bfloat16(), SETTINGS)
    return tmp_path


def test_every_caption_finds_its_embedding(folder):
    store = TextEmbeddingStore(folder)
    assert len(store) == 15
    for shard in range(3):
        for row in range(5):
            embed = store[f' caption {shard} {row}\n']
            assert embed.shape == (4, 2)
            assert embed.dtype == torch.bfloat16
            assert torch.equal(embed, torch.full((4, 2), shard + row / 10, dtype=torch.float32).bfloat16())


def test_an_unknown_caption_is_named(folder):
    store = TextEmbeddingStore(folder)
    assert 'caption 9 9' not in store
    with pytest.raises(ValueError, match='caption 9 9'):
        store['caption 9 9']
    with pytest.raises(ValueError, match=r"'x+\.\.\.': run tools"):
        store['x' * 10**6]
    assert '' not in TextEmbeddingStore(folder / 'nowhere')


def test_the_transform_adds_the_embedding_and_survives_pickling(folder):
    transform = pickle.loads(pickle.dumps(LoadTextEmbedding(str(folder))))
    results = transform({'text': 'caption 2 0', 'label': 1})
    assert results['text_embeds'][0, 0] == 2
    assert results['label'] == 1


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='precompute_text'):
        LoadTextEmbedding(str(tmp_path))


def test_a_damaged_or_foreign_shard_is_named(folder):
    store = TextEmbeddingStore(folder)
    store.write('part-9', ['x'], torch.zeros(1, 8, 2), {'max_length': '8'})
    with pytest.raises(ValueError, match=r'part-9.*made with'):
        TextEmbeddingStore(folder)
    (folder / 'part-9.safetensors').write_bytes(b'\x00' * 20)
    with pytest.raises(ValueError, match=r'part-9.*delete it'):
        TextEmbeddingStore(folder)


def test_writing_leaves_no_temporary_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == [f'part-{shard}.safetensors' for shard in range(3)]


def shard(change):
    """The tensors and the metadata of a shard of three captions, as ``change`` leaves them."""
    tensors = dict(embeds=torch.zeros(3, 4, 2, dtype=torch.bfloat16), keys=torch.zeros(3, 16, dtype=torch.uint8))
    settings = dict(model='Qwen3-1.7B', max_length='4', dtype='bfloat16')
    change(tensors, settings)
    return tensors, settings


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t, s: t.pop('embeds'), '1 tensors, and not embeds and keys alone'),
        (lambda t, s: t.pop('keys'), '1 tensors, and not embeds and keys alone'),
        (lambda t, s: t.update(more=torch.zeros(1)), '3 tensors'),
        (lambda t, s: t.update(keys=torch.zeros(3, 8, dtype=torch.uint8)), r'keys are \(3, 8\) of torch.uint8'),
        (lambda t, s: t.update(keys=torch.zeros(3, 16)), 'keys are .* of torch.float32'),
        (lambda t, s: t.update(keys=torch.zeros((), dtype=torch.uint8)), 'its number of captions=0'),
        (lambda t, s: t.update(embeds=torch.zeros(2, 4, 2)), r'embeds are \(2, 4, 2\)'),
        (lambda t, s: t.update(embeds=torch.zeros(3, 8)), r'embeds are \(3, 8\)'),
        (lambda t, s: t.update(embeds=torch.zeros(3, 4, 2, dtype=torch.int16)), 'of torch.int16'),
        (lambda t, s: t.update(embeds=torch.zeros(3, 5, 2, dtype=torch.bfloat16)), "metadata says '4'"),
        (lambda t, s: t.update(embeds=torch.zeros(3, 4, 2)), "metadata says 'bfloat16'"),
        (lambda t, s: t.update(embeds=torch.zeros(3, 4, 0)), 'its width=0'),
        (lambda t, s: s.update(script='os'), "its metadata has an entry 'script'"),
    ],
)
def test_a_shard_of_another_form_is_refused_in_one_line(tmp_path, change, message):
    tensors, settings = shard(change)
    save_file(tensors, tmp_path / 'a.safetensors', settings)
    with pytest.raises(ValueError, match=message) as error:
        TextEmbeddingStore(tmp_path)
    assert '\n' not in str(error.value)
    assert 'a.safetensors' in str(error.value)


def test_shards_of_different_widths_are_refused(folder):
    TextEmbeddingStore(folder).write('part-9', ['x'], torch.zeros(1, 4, 3, dtype=torch.bfloat16), SETTINGS)
    with pytest.raises(ValueError, match=r'part-9.* has embeddings \(4, 3\).*before it \(4, 2\)'):
        TextEmbeddingStore(folder)


def test_an_embedding_that_is_not_finite_is_named(folder):
    embeds = torch.tensor([1.0, float('nan')]).expand(2, 4, 2).clone()
    embeds[0] = 1
    TextEmbeddingStore(folder).write('part-9', ['fine', 'broken'], embeds.bfloat16(), SETTINGS)
    store = TextEmbeddingStore(folder)
    assert store['fine'].shape == (4, 2)
    with pytest.raises(ValueError, match=r"part-9.*the embedding of 'broken' holds NaN"):
        store['broken']


def test_a_shard_that_is_cut_short_while_it_is_held_does_no_harm(tmp_path):
    TextEmbeddingStore(tmp_path).write('a', [str(i) for i in range(50)], torch.ones(50, 64, 64), {'max_length': '64'})

    def hold():
        store = TextEmbeddingStore(tmp_path)
        held = store['49']
        os.truncate(tmp_path / 'a.safetensors', 1000)
        with pytest.raises(ValueError, match='cut short'):
            store['48']
        return float(held.sum())

    outcome = limited(hold)
    assert not outcome.signal, 'it died of SIGBUS'
    assert outcome.value == 64 * 64


def test_pipes_are_not_waited_for(folder):
    os.mkfifo(folder / 'pipe.safetensors')
    assert 'not a plain file' in refusal(lambda: TextEmbeddingStore(folder))


def test_embeddings_are_read_to_the_cpu_whatever_the_default_device(folder):
    with torch.device('meta'):
        assert TextEmbeddingStore(folder)['caption 1 0'].device.type == 'cpu'

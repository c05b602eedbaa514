import pickle

import pytest
import torch

from pixnerd_plugin.datasets.transforms import LoadTextEmbedding
from pixnerd_plugin.models.conditioners.embedding_store import TextEmbeddingStore

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

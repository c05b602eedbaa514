# Pictures and captions in tar shards, for millions of files; docs/data.md says how to make shards and index. Inherit
# this in place of caption_folder.py. 16 GPUs x 96.
_base_ = './caption_folder.py'
data_root = '{{$PIXNERD_SHARDS:data/shards}}'

train_dataloader = dict(
    dataset=dict(type='ShardDataset', data_root=data_root, index=f'{data_root}/index'),
    sampler=dict(shards_per_block=16),
)

# scikit-learn's handwritten digits, which ship with the library: 1437 to train on, 360 held out.
image_size = 32

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(type='DigitsDataset', size=image_size, split='train', pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='ResumableSampler', shuffle=True, seed=0),
    collate_fn=dict(type='default_collate'),
)

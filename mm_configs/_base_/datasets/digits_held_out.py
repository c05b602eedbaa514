# digits.py, with the 360 held-out digits measured during training.
_base_ = './digits.py'
image_size = 32

val_dataloader = dict(
    batch_size=60,
    num_workers=0,
    dataset=dict(type='DigitsDataset', size=image_size, split='test', pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_cfg = dict(type='ValidationLoop')
val_evaluator = [dict(type='LossByTime')]

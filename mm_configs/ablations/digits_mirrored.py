# Fine-tuning in small: the network of make demo-classes learns mirrored digits, to compare optimisers in half a minute.
_base_ = '../pixnerd_digits.py'
image_size = 32
model = dict(loss=dict(max_density=1), sampler=dict(num_steps=10))
pipeline = [dict(type='RandomFlip', prob=1.0), dict(type='PackInputs')]
train_dataloader = dict(batch_size=32, dataset=dict(size=image_size, pipeline=pipeline))
val_dataloader = dict(dataset=dict(size=image_size, pipeline=pipeline))
max_iters = 100
train_cfg = dict(max_iters=max_iters, val_interval=50)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=10)]
default_hooks = dict(logger=dict(interval=10), ema=dict(decay=0.9), checkpoint=dict(interval=max_iters))
load_from = '{{$PIXNERD_INIT:work_dirs/digits/iter_1600.pth}}'
custom_hooks = [
    dict(type='SampleGridHook', interval=1000, conditions=dict(label=list(range(10))), size=image_size, columns=10)
]

# The small studies without data to download: scikit-learn's digits, up to a minute a run on one CPU core. The field's
# coordinates are the paper's, because the studies vary them.
_base_ = '../pixnerd_digits.py'
image_size = 32
max_density = 1
model = dict(
    backbone=dict(dim=64, depth=3, head=dict(width=16, depth=2, mlp_ratio=2, coordinates='dct', num_frequencies=8)),
    loss=dict(dim=64, projector_dim=64, max_density=max_density),
    sampler=dict(noise_limit=0.0),  # as the paper's
)
max_iters = 300
train_dataloader = dict(batch_size=32, dataset=dict(size=image_size * max_density))
val_dataloader = dict(dataset=dict(size=image_size * max_density))
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters, keep_every=0))
custom_hooks = [
    dict(type='SampleGridHook', interval=max_iters, conditions=dict(label=list(range(10)) * 2), size=32, columns=10)
]

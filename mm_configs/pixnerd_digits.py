# PixNerd on scikit-learn's handwritten digits: 1.8 M parameters, minutes on two CPU cores (make demo).
_base_ = [
    '_base_/models/pixnerd_c2i.py',
    '_base_/datasets/digits.py',
    '_base_/schedules/c2i_800k.py',
    '_base_/runtime/default.py',
]
image_size = 32
# The field is trained between base pixels too, on pictures up to this many times larger.
max_density = 4
max_iters = 2000

model = dict(
    backbone=dict(
        dim=128,
        depth=4,
        num_heads=4,
        patch_size=8,
        num_classes=10,
        head=dict(width=32, depth=2, mlp_ratio=1, alignment='centers'),
    ),
    conditioner=dict(num_classes=10, class_names=list('0123456789')),
    loss=dict(teacher=None, dim=128, projector_dim=128, max_density=max_density),
    sampler=dict(
        _delete_=True,
        type='AdamsFlowSampler',
        num_steps=25,
        order=2,
        guidance_scale=2.0,
        guidance_interval=(0.0, 1.0),
        timeshift=1.0,
    ),
)
train_dataloader = dict(batch_size=64, dataset=dict(size=image_size * max_density))
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type='FiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=100, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(
    logger=dict(interval=50),
    ema=dict(decay=0.995),
    checkpoint=dict(interval=200, keep_every=0),
)
custom_hooks = [
    dict(type='SampleGridHook', interval=500, conditions=dict(label=list(range(10)) * 3), size=image_size, columns=10)
]

# Minutes on a CPU: a high learning rate with warm-up and cosine decay, clipped gradients, a short EMA.
_base_ = '../runtime/default.py'
max_iters = 1600
train_cfg = dict(type='ResumableTrainLoop', max_iters=max_iters)
optim_wrapper = dict(
    type='FiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=100, end=max_iters),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)
default_hooks = dict(
    logger=dict(interval=50),
    ema=dict(decay=0.995),
    checkpoint=dict(interval=200, keep_every=0),
)

# A thousand steps on a few hundred pictures, on one GPU with 24 GB: small batches accumulated to 32, activations
# recomputed, no alignment loss (pre-training had it), a low learning rate after a short warm-up.
_base_ = '../runtime/default.py'
accumulate = 4
max_iters = 1000 * accumulate
train_cfg = dict(type='ResumableTrainLoop', max_iters=max_iters)
optim_wrapper = dict(
    type='Bf16OptimWrapper',
    accumulative_counts=accumulate,
    optimizer=dict(type='AdamW', lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50 * accumulate)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
default_hooks = dict(
    logger=dict(interval=20),
    ema=dict(decay=0.998),
    checkpoint=dict(interval=500, max_keep_ckpts=2, keep_every=0),
)

# Digits in one to four steps without a teacher: the network learns velocities first, then steps. docs/few_steps.md
_base_ = './pixnerd_digits_meanflow.py'
flow_batches, warmup, max_iters = 600, 200, 1200
# Guidance in the target is from the network's own velocities, with and without the class.
model = dict(loss=dict(velocity_teacher=None, cond_drop_prob=0.1, flow_batches=flow_batches, warmup=warmup))
load_from = None
train_cfg = dict(max_iters=max_iters)
# With a rate of 1e-3, 77 % are recognised and not 100.
adamw = dict(_delete_=True, type='AdamW', lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
optim_wrapper = dict(constructor='DefaultOptimWrapperConstructor', optimizer=adamw)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(ema=dict(decay=0.99), checkpoint=dict(interval=100, keep_every=100))

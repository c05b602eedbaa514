# The digits of make demo in one to four steps: its network (PIXNERD_INIT), distilled with MeanFlow. docs/few_steps.md
_base_ = './pixnerd_digits.py'
teacher = '{{$PIXNERD_INIT:work_dirs/digits/iter_1600.pth}}'
max_iters = 100  # longer, the picture of one step gets worse
model = dict(
    backbone=dict(step_end=True),
    loss=dict(
        type='MeanFlowLoss',
        velocity_teacher=dict(type='FrozenBackbone', checkpoint=teacher),
        # That of the demo's sampler. No condition is dropped: sampling needs no second half.
        guidance_scale=4.0,
        guidance_interval=(0.0, 0.6),
        cond_drop_prob=0.0,
        equal_share=0.25,
        end_share=0.2,
        whole_share=0.2,
        warmup=100,
        noise_limit=2.0,
    ),
    sampler=dict(_delete_=True, type='MeanFlowSampler', num_steps=2, noise_limit=2.0),
)
load_from = teacher
train_dataloader = dict(batch_size=32)
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=False, begin=30, end=2 * max_iters),
]
default_hooks = dict(logger=dict(interval=20), ema=dict(decay=0.97), checkpoint=dict(interval=100))

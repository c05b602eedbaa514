# cifar10_wide.py after 2000 steps (PIXNERD_INIT), distilled with MeanFlow into one to eight steps. docs/few_steps.md
_base_ = './cifar10_wide.py'
teacher = '{{$PIXNERD_INIT:work_dirs/cifar10/iter_2000.pth}}'
flow_batches, warmup, max_iters = 200, 150, 800
model = dict(
    backbone=dict(step_end=True, prediction='image'),
    loss=dict(
        type='MeanFlowLoss',
        velocity_teacher=dict(type='FrozenBackbone', checkpoint=teacher),
        guidance_scale=2.0,
        cond_drop_prob=0.0,
        equal_share=0.5,
        end_share=0.1,
        whole_share=0.2,
        time_std=1.5,
        flow_batches=flow_batches,
        warmup=warmup,
        reach=0.1,
        power=0.5,
        teacher=None,
    ),
    sampler=dict(_delete_=True, type='MeanFlowSampler', num_steps=4),
)
load_from = teacher
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(ema=dict(decay=0.99), checkpoint=dict(interval=max_iters))
custom_hooks = [
    dict(type='SampleGridHook', interval=max_iters, conditions=dict(label=list(range(10)) * 2), size=32, columns=10)
]

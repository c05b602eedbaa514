# The digits of make demo-classes in one to four steps, distilled from its network (PIXNERD_INIT). docs/few_steps.md
_base_ = './pixnerd_digits.py'
teacher = '{{$PIXNERD_INIT:work_dirs/digits/iter_1600.pth}}'
flow_batches, warmup, max_iters = 120, 80, 1200
model = dict(
    # The teacher tells velocities. A student that tells images need not pass the noise of a step through its field.
    backbone=dict(step_end=True, prediction='image'),
    loss=dict(
        type='MeanFlowLoss',
        velocity_teacher=dict(type='FrozenBackbone', checkpoint=teacher),
        # That of the teacher's sampler. No condition is dropped: sampling needs no second half.
        guidance_scale=4.0,
        guidance_interval=(0.0, 0.6),
        cond_drop_prob=0.0,
        equal_share=0.5,
        end_share=0.1,
        whole_share=0.2,
        flow_batches=flow_batches,
        warmup=warmup,
        noise_limit=2.0,
        reach=0.1,
        power=0.5,
    ),
    sampler=dict(_delete_=True, type='MeanFlowSampler', num_steps=2, noise_limit=2.0),
)
load_from = teacher
train_dataloader = dict(batch_size=32)
train_cfg = dict(max_iters=max_iters)
# 600 batches of AdamW at 1e-3 left the borders of patches in pictures of one step.
muon = dict(_delete_=True, type='MuonAdamW', lr=2e-3, ns_steps=3)
optim_wrapper = dict(constructor='MuonConstructor', optimizer=muon)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=False, begin=30, end=max_iters),
]
default_hooks = dict(logger=dict(interval=20), ema=dict(decay=0.98), checkpoint=dict(interval=200))

# PixNerd-XL/16 in one to four steps: converted weights (PIXNERD_INIT) distilled with MeanFlow on pictures of ImageNet,
# on one GPU with 24 GB. 702,213,539 parameters: docs/few_steps.md
_base_ = ['_base_/models/pixnerd_c2i.py', '_base_/datasets/imagenet256.py', '_base_/schedules/finetune.py']
teacher = '{{$PIXNERD_INIT:weights/pixnerd_xl16.pth}}'
accumulate = 32
max_iters = 20_000 * accumulate
model = dict(
    backbone=dict(step_end=True, prediction='image', checkpoint=True),
    loss=dict(
        type='MeanFlowLoss',
        velocity_teacher=dict(type='FrozenBackbone', checkpoint=teacher, dtype='bfloat16'),
        guidance_scale=3.5,
        guidance_interval=(0.1, 1.0),
        cond_drop_prob=0.0,
        equal_share=0.5,
        end_share=0.1,
        whole_share=0.2,
        flow_batches=2000 * accumulate,
        warmup=2000 * accumulate,
        reach=0.1,
        power=0.5,
        teacher=None,
    ),
    sampler=dict(_delete_=True, type='MeanFlowSampler', num_steps=2),
)
load_from = teacher
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(accumulative_counts=accumulate, optimizer=dict(lr=5e-5, betas=(0.9, 0.95)))
auto_scale_lr = dict(base_batch_size=8 * accumulate)
default_hooks = dict(ema=dict(decay=0.999), checkpoint=dict(interval=500 * accumulate))
labels = [207, 88, 291, 387, 417, 483, 967, 980]
custom_hooks = [dict(type='SampleGridHook', interval=500 * accumulate, conditions=dict(label=labels), size=256)]

# PixNerd on CIFAR-10, 32x32 in patches of 4: 24.7 M parameters, one GPU.
_base_ = [
    '_base_/models/pixnerd_c2i.py',
    '_base_/datasets/cifar10_held_out.py',
    '_base_/schedules/c2i_800k.py',
    '_base_/runtime/default.py',
]
model = dict(
    backbone=dict(dim=384, depth=8, num_heads=6, patch_size=4, num_classes=10, head=dict(width=32, depth=2)),
    conditioner=dict(
        num_classes=10,
        class_names=['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'],
    ),
    loss=dict(teacher=None, dim=384, projector_dim=384),
    sampler=dict(num_steps=50, guidance_scale=2.0),
)
train_cfg = dict(max_iters=100_000, val_interval=5_000)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(
    ema=dict(decay=0.9995),
    checkpoint=dict(interval=5_000, keep_every=50_000),
)
custom_hooks = [
    dict(type='BestCheckpointHook', save_best='loss_flow'),
    dict(type='SampleGridHook', interval=5_000, conditions=dict(label=list(range(10)) * 10), size=32, columns=10),
]

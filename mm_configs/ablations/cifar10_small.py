# The network of the small studies (docs/results.md): CIFAR-10 in patches of 8, 0.9 M parameters, minutes a run on one
# CPU core. tools/analysis_tools/sweep.py makes the variants. The teacher is a classifier (tools/train_classifier.py).
_base_ = [
    '../_base_/models/pixnerd_c2i.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/small.py',
]
patch_size = 8
model = dict(
    backbone=dict(
        dim=96, depth=4, num_heads=4, patch_size=patch_size, num_classes=10, head=dict(width=16, depth=2, mlp_ratio=2)
    ),
    conditioner=dict(
        num_classes=10,
        class_names=['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'],
    ),
    loss=dict(
        align_layer=2,
        teacher=dict(
            _delete_=True,
            type='ClassifierTeacher',
            weights='{{$PIXNERD_CLASSIFIER:work_dirs/classifier.safetensors}}',
            patch_size=patch_size,
        ),
        dim=96,
        projector_dim=96,
        teacher_dim=96,
    ),
    sampler=dict(
        _delete_=True,
        type='AdamsFlowSampler',
        num_steps=12,
        guidance_scale=2.0,
        guidance_interval=(0.0, 1.0),
        timeshift=1.0,
    ),
)
train_dataloader = dict(batch_size=32, num_workers=0, persistent_workers=False)
max_iters = 300
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters, keep_every=0))
custom_hooks = [
    dict(type='SampleGridHook', interval=max_iters, conditions=dict(label=list(range(10)) * 2), size=32, columns=10)
]

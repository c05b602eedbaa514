# Text to image on CIFAR-10 in three shapes of 256 pixels, captioned by class, minutes on a CPU: docs/data.md.
# tools/analysis_tools/crop_shapes.py makes the pictures (PIXNERD_CAPTIONS), tools/train_classifier.py the teacher.
_base_ = './pixnerd_t2i_tiny.py'
image_size = 16
classifier = '{{$PIXNERD_CLASSIFIER:work_dirs/classifier.safetensors}}'
net = dict(dim=96, depth=3, num_heads=4, text_length=10, text_depth=0, position_rule='grid')
teacher = dict(_delete_=True, type='ClassifierTeacher', weights=classifier, patch_size=8)
model = dict(
    backbone=dict(head=dict(width=16, depth=1, mlp_ratio=2), **net),
    conditioner=dict(max_length=10),
    loss=dict(align_layer=2, dim=96, projector_dim=96, teacher=teacher, teacher_dim=96),
    sampler=dict(num_steps=12, guidance_scale=2.0),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='ResizeCenterCrop', size=image_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]
    ),
    batch_sampler=dict(type='BucketBatchSampler', resolution=image_size, max_aspect=4.0, multiple=8),
)
max_iters = 1500
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=100, end=max_iters),
]
default_hooks = dict(ema=dict(decay=0.99))
feature_extractor = dict(type='ClassifierFeatures', weights=classifier, any_size=True)
prompts = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
sizes = [(8, 32), (16, 16), (32, 8)]
custom_hooks = [
    dict(type='SampleGridHook', interval=max_iters, conditions=dict(text=prompts * 2), size=sizes, columns=10)
]

# A network of a few thousand parameters, for tests of training. The modules of data/ must be importable.
_base_ = ['../../mm_configs/_base_/runtime/default.py', '../../mm_configs/_base_/datasets/digits.py']

custom_imports = dict(imports=['record_noise', 'faults'])
model = dict(
    type='PixNerd',
    backbone=dict(
        type='PixNerdDiT',
        dim=16,
        depth=1,
        num_heads=2,
        patch_size=8,
        num_classes=10,
        head=dict(type='NeuralFieldHead', width=4, depth=1, num_frequencies=4),
    ),
    conditioner=dict(type='LabelConditioner', num_classes=10),
    loss=dict(type='FlowMatchREPALoss', dim=16, projector_dim=16, teacher_dim=16),
    sampler=dict(type='EulerFlowSampler', num_steps=2),
)
image_size = 16
train_dataloader = dict(batch_size=4, dataset=dict(size=image_size))
train_cfg = dict(type='ResumableTrainLoop', max_iters=6)
optim_wrapper = dict(type='FiniteOptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
param_scheduler = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6)
default_hooks = dict(
    logger=dict(interval=1),
    ema=dict(decay=0.5),
    checkpoint=dict(interval=2),
    samples=dict(type='SampleGridHook', interval=3, size=image_size, conditions=dict(label=[0, 1, 2])),
    record=dict(type='RecordNoiseHook'),
)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])

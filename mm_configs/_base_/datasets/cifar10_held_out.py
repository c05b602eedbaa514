# cifar10.py, with the 10,000 test pictures (data/cifar10/test) measured during training.
_base_ = './cifar10.py'
test_root = '{{$PIXNERD_CIFAR10:data/cifar10}}/test'

val_dataloader = dict(
    batch_size=250,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(type='ImageFolder', data_root=test_root, pipeline=[dict(type='LoadRGB'), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_cfg = dict(type='ValidationLoop')
val_evaluator = [dict(type='LossByTime')]

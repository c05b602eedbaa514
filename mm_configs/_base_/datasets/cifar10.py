# CIFAR-10 as picture files, one folder per class: data/cifar10/train/airplane/*.png
data_root = '{{$PIXNERD_CIFAR10:data/cifar10}}/train'
image_size = 32

train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type='ImageFolder',
        data_root=data_root,
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='ResumableSampler', shuffle=True, seed=0),
    collate_fn=dict(type='default_collate'),
)

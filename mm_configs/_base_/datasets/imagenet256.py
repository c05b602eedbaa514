# ImageNet, one folder per class; ADM's centre crop and no flip, as in the reference statistics. 8 GPUs x 32.
data_root = '{{$PIXNERD_IMAGENET:data/imagenet}}/train'
image_size = 256

train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='ImageFolder',
        data_root=data_root,
        pipeline=[
            dict(type='LoadRGB', exif_orientation=False),
            dict(type='ADMCenterCrop', size=image_size),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='ResumableSampler', shuffle=True, seed=0),
    collate_fn=dict(type='default_collate'),
)

# PixNerd on photographs, one folder per class (PIXNERD_PHOTOS): a larger network than for the digits, 32x32 in patches
# of 8, with the field trained on originals of 128x128. For studying resolution on a CPU (docs/resolution.md).
_base_ = './pixnerd_digits.py'
data_root = '{{$PIXNERD_PHOTOS:data/photos}}/train'
image_size = 32
max_density = 4
model = dict(
    backbone=dict(
        dim=192, depth=6, num_heads=6, num_classes=1, head=dict(width=48, coordinates='dct', num_frequencies=8)
    ),
    conditioner=dict(num_classes=1, class_names=['photo']),
    loss=dict(dim=192, projector_dim=192, time_std=1.0),
    sampler=dict(guidance_scale=4.0, noise_limit=0.0),
)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='ImageFolder',
        data_root=data_root,
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='RandomCropResize', size=image_size * max_density, min_scale=0.67),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
custom_hooks = [dict(type='SampleGridHook', interval=500, conditions=dict(label=[0] * 16), size=image_size, columns=8)]

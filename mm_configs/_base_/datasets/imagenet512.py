_base_ = './imagenet256.py'
image_size = 512
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadRGB', exif_orientation=False),
            dict(type='ADMCenterCrop', size=image_size),
            dict(type='PackInputs'),
        ],
    ),
)

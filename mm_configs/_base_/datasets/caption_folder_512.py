_base_ = './caption_folder.py'
image_size = 512
train_dataloader = dict(
    batch_size=24,
    dataset=dict(
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='ResizeCenterCrop', size=image_size),
            dict(type='RandomCaption'),
            dict(type='PackInputs', keys=('text', 'text_embeds')),
        ],
    ),
)

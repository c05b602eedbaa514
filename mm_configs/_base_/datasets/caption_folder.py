# Pictures with a caption file beside each (cat.jpg, cat.txt). 16 GPUs x 96.
data_root = '{{$PIXNERD_CAPTIONS:data/captions}}'
image_size = 256

train_dataloader = dict(
    batch_size=96,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='CaptionFolder',
        data_root=data_root,
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='ResizeCenterCrop', size=image_size),
            dict(type='RandomCaption'),
            dict(type='PackInputs', keys=('text', 'text_embeds')),
        ],
    ),
    sampler=dict(type='ResumableSampler', shuffle=True, seed=0),
    collate_fn=dict(type='default_collate'),
)

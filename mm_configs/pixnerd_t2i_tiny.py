# Text to image at 32x32 on a CPU, from a folder of pictures with captions (PIXNERD_CAPTIONS). The text encoder is a
# tiny random Qwen3, which can tell prompts apart. For a real one, set PIXNERD_TINY_QWEN3 and model.backbone.text_dim.
_base_ = [
    '_base_/models/pixnerd_t2i.py',
    '_base_/datasets/caption_folder.py',
    '_base_/schedules/small.py',
]
text_encoder = '{{$PIXNERD_TINY_QWEN3:tiny}}'
if text_encoder == 'tiny':
    text_encoder = '{{fileDirname}}/../tests/data/qwen3_tiny'
field = dict(width=32, mlp_ratio=1)
model = dict(
    backbone=dict(dim=192, depth=4, num_heads=6, patch_size=8, text_dim=40, text_length=32, text_depth=1, head=field),
    conditioner=dict(model=text_encoder, max_length=32, dtype='float32'),
    loss=dict(timeshift=1.0, teacher=None, dim=192, projector_dim=192),
    sampler=dict(timeshift=1.0, guidance_scale=3.0),
)
image_size = 32
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='ResizeCenterCrop', size=image_size),
            dict(type='RandomCaption'),
            dict(type='PackInputs'),
        ]
    ),
)
prompts = ['a photo of a ship', 'a photo of a frog']
custom_hooks = [
    dict(type='SampleGridHook', interval=500, conditions=dict(text=prompts * 4), size=image_size, columns=2)
]

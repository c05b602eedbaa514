# Full fine-tuning of PixNerd-XXL/16 at 512 on your own captioned pictures (PIXNERD_CAPTIONS), with their stored text
# embeddings (PIXNERD_TEXT) and converted weights (PIXNERD_INIT), on one GPU with 24 GB: docs/finetuning.md.
_base_ = [
    '_base_/models/pixnerd_t2i.py',
    '_base_/datasets/caption_folder_precomputed.py',
    '_base_/schedules/finetune.py',
]
text_embeddings = '{{$PIXNERD_TEXT:data/text}}'
image_size = 512
accumulate = 16
max_iters = 1000 * accumulate
model = dict(
    backbone=dict(checkpoint=True),
    conditioner=dict(precomputed=text_embeddings),
    loss=dict(timeshift=4.0, teacher=None),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    dataset=dict(
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='RandomCropResize', size=image_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomCaption'),
            dict(type='LoadTextEmbedding', folder=text_embeddings),
            dict(type='PackInputs', keys=('text_embeds',)),
        ],
    ),
)
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(accumulative_counts=accumulate)
# Weights, gradients and AdamW's moments leave no room for the average on the GPU.
default_hooks = dict(ema=dict(device='cpu', interval=10))
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50 * accumulate)]
load_from = '{{$PIXNERD_INIT:weights/pixnerd_xxl16_t2i.pth}}'
custom_hooks = [dict(type='SampleGridHook', interval=1000, conditions=dict(text=[''] * 4), size=512, batch_size=1)]

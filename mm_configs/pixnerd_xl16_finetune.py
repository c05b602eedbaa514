# Full fine-tuning of PixNerd-XL/16 on your own pictures, one folder per class (PIXNERD_PHOTOS/train/CLASS/*.jpg), from
# converted weights (PIXNERD_INIT): docs/finetuning.md. The folders are the classes, in place of ImageNet's.
_base_ = ['_base_/models/pixnerd_c2i.py', '_base_/datasets/imagenet256.py', '_base_/schedules/finetune.py']
data_root = '{{$PIXNERD_PHOTOS:data/photos}}/train'
image_size = 256
own_classes = True
model = dict(backbone=dict(checkpoint=True), loss=dict(teacher=None))
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='RandomCropResize', size=image_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
load_from = '{{$PIXNERD_INIT:weights/pixnerd_xl16.pth}}'
custom_hooks = [dict(type='SampleGridHook', interval=500, conditions=dict(label=[0] * 8), size=256, raw=True)]

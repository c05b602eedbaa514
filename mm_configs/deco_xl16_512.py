# DeCo-XL/16 on ImageNet 512, fine-tuned from 256.
_base_ = [
    '_base_/models/deco_c2i.py',
    '_base_/datasets/imagenet512.py',
    '_base_/schedules/c2i_512_200k.py',
    '_base_/runtime/default.py',
]
model = dict(sampler=dict(guidance_scale=5.0))
load_from = '{{$PIXNERD_INIT:work_dirs/deco_xl16/iter_800000.pth}}'
labels = [207, 88, 291, 387, 417, 483, 967, 980]
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(label=labels), size=512, batch_size=8)]

# DeCo-XXL/16 at 512, from the weights at 256: 16 GPUs x 32.
_base_ = [
    '_base_/models/deco_t2i.py',
    '_base_/datasets/caption_folder_512.py',
    '_base_/schedules/t2i_512_80k.py',
    '_base_/runtime/default.py',
]
model = dict(loss=dict(timeshift=4.0))
train_dataloader = dict(batch_size=512 // 16)
load_from = '{{$PIXNERD_INIT:work_dirs/deco_xxl16_t2i_256/iter_200000.pth}}'
prompts = ['a photo of a cat', 'a red panda eating bamboo, close-up', 'an oil painting of a lighthouse in a storm']
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(text=prompts * 2), size=512, batch_size=6)]

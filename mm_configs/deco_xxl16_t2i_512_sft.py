# Supervised fine-tuning of DeCo-XXL/16 at 512 on selected pictures: 16 GPUs x 24.
_base_ = [
    '_base_/models/deco_t2i.py',
    '_base_/datasets/caption_folder_512.py',
    '_base_/schedules/t2i_512_sft_60k.py',
    '_base_/runtime/default.py',
]
model = dict(loss=dict(timeshift=4.0))
load_from = '{{$PIXNERD_INIT:work_dirs/deco_xxl16_t2i_512/iter_80000.pth}}'
prompts = ['a photo of a cat', 'a red panda eating bamboo, close-up', 'an oil painting of a lighthouse in a storm']
custom_hooks = [dict(type='SampleGridHook', interval=5_000, conditions=dict(text=prompts * 2), size=512, batch_size=6)]

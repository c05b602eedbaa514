# DeCo-XXL/16, text to image at 256, 16 GPUs x 96: 1,133,759,395 parameters.
_base_ = [
    '_base_/models/deco_t2i.py',
    '_base_/datasets/caption_folder.py',
    '_base_/schedules/t2i_200k.py',
    '_base_/runtime/default.py',
]
prompts = [
    'a photo of a cat',
    'a red panda eating bamboo, close-up',
    'a steampunk laboratory, brass pipes, warm light',
    'an oil painting of a lighthouse in a storm',
]
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(text=prompts * 4), size=256)]

# DeCo-XL/16 on ImageNet 256, 8 GPUs x 32: 682,282,851 parameters.
# As long as PixNerd, 160 epochs; the published weights had 800: --cfg-options train_cfg.max_iters=4_000_000.
_base_ = [
    '_base_/models/deco_c2i.py',
    '_base_/datasets/imagenet256.py',
    '_base_/schedules/c2i_800k.py',
    '_base_/runtime/default.py',
]
# Golden retriever, macaw, lion, red panda, balloon, castle, espresso, volcano.
labels = [207, 88, 291, 387, 417, 483, 967, 980]
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(label=labels * 2), size=256)]

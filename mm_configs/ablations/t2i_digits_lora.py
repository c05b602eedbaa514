# A seventh colour for the model of pixnerd_t2i_digits.py: adapters of rank 16, from twenty pictures with orange digits
# and nine without, so that it is learned beside the others. A minute on a CPU.
# First `python tools/demo_t2i.py prepare --config` with this file. docs/text_to_image.md
_base_ = '../pixnerd_t2i_digits.py'
work_dir = 'work_dirs/t2i_digits_lora'
load_from = 'work_dirs/t2i_digits/iter_1800.pth'
max_iters = 500
frozen = dict(model=f'{work_dir}/text_encoder', precomputed=f'{work_dir}/text')
# The teacher has never seen orange.
model = dict(lora=dict(rank=16), conditioner=frozen, loss=dict(teacher=None))
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
)
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=20, end=max_iters),
]
text_embeddings = f'{work_dir}/text'
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        num=29,
        colours=('orange',) * 6 + ('red', 'green', 'blue', 'yellow', 'purple', 'cyan'),  # half of all digits
        pipeline=[
            dict(type='LoadTextEmbedding', folder=text_embeddings),
            dict(type='PackInputs', keys=('text_embeds',)),
        ],
    ),
)
default_hooks = dict(ema=dict(decay=0.98))
prompts = ['an orange three', 'a red three'] * 4
custom_hooks = [dict(type='SampleGridHook', interval=250, conditions=dict(text=prompts), size=32, columns=4)]

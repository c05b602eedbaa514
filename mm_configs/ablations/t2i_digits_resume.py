# All that a resumed run must go on with exactly, in a network of seconds: pictures of several shapes, Muon, validation
# with its best checkpoint, averages of two lengths. For tools/analysis_tools/kill_and_resume.py (docs/reliability.md).
_base_ = '../pixnerd_t2i_digits.py'
width = 48
image_size = 32
head = dict(width=8, depth=1, num_frequencies=3)
model = dict(
    backbone=dict(
        dim=width,
        depth=1,
        num_heads=2,
        mlp_hidden=width,
        patch_size=8,
        text_dim=40,
        text_length=64,
        head=head,
    ),
    conditioner=dict(
        model='{{fileDirname}}/../../tests/data/qwen3_tiny', max_length=64, precomputed=None, dtype='float32'
    ),
    loss=dict(dim=width, projector_dim=width, max_density=1, teacher=None),
    sampler=dict(num_steps=2),
)
optim_wrapper = dict(constructor='MuonConstructor', optimizer=dict(_delete_=True, type='MuonAdamW', lr=2e-3))
pipeline = [dict(type='PackInputs')]
train_dataloader = dict(batch_size=16, dataset=dict(num=500, scale=1, pipeline=pipeline))
val_dataloader = dict(
    batch_size=1,  # pictures of several shapes
    num_workers=0,
    dataset=dict(type='CaptionedDigits', num=6, split='test', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_cfg = dict(type='ValidationLoop')
val_evaluator = [dict(type='LossByTime')]
train_cfg = dict(max_iters=150, val_interval=15)
custom_hooks = [
    dict(type='BestCheckpointHook'),
    dict(type='PowerEMAHook', interval=15),
    dict(type='SampleGridHook', interval=75, conditions=dict(text=['a red three']), size=image_size, columns=1),
]

# What tools/analysis_tools/study_heads.py varies: a network of 0.7 M parameters on digits, a minute a run on a core.
_base_ = '../pixnerd_digits.py'
image_size = 32
max_density = 1  # the linear head knows base pixels only
model = dict(
    backbone=dict(
        dim=96,
        depth=3,
        head=dict(width=16, depth=2, mlp_ratio=1, coordinates='sincos', num_frequencies=3, alignment='centers'),
    ),
    loss=dict(dim=96, projector_dim=96, align_layer=3, max_density=max_density),
    # Where the network of pixnerd_digits.py is nearest to the data's distribution (docs/results.md).
    sampler=dict(guidance_scale=2.0, num_steps=12),
)
train_dataloader = dict(batch_size=16, dataset=dict(size=image_size * max_density))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
custom_hooks = [
    dict(type='SampleGridHook', interval=500, conditions=dict(label=list(range(10)) * 2), size=32, columns=10)
]
# The study scores its networks itself.
val_cfg = val_dataloader = val_evaluator = None

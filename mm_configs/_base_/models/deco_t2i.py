# DeCo, text to image, XXL/16: 1,133,759,395 parameters, and Qwen3-1.7B frozen beside them.
_base_ = './pixnerd_t2i.py'
model = dict(
    backbone=dict(
        head=dict(_delete_=True, type='DeCoHead', width=32, depth=3, coordinates='cosine', num_frequencies=8),
    ),
    loss=dict(terms=[dict(type='FrequencyLoss', weight=1.0, quality=85)]),
)

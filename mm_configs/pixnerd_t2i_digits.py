# Text to image on coloured handwritten digits: 4.2 M parameters, minutes on two CPU cores (make demo).
_base_ = [
    '_base_/models/pixnerd_t2i.py',
    '_base_/datasets/captioned_digits.py',
    '_base_/schedules/small.py',
]
image_size = 32
max_density = 2  # also train the field between base pixels
text_length = 24
norms = 'fc1_fc2_output'
model = dict(
    backbone=dict(
        dim=192,
        depth=4,
        num_heads=6,
        mlp_hidden=384,
        patch_size=8,
        text_dim=64,
        text_length=text_length,
        text_depth=1,
        position_rule='grid',
        prediction='image',  # flat colours are simple, the noise on them is not
        # Strokes are smooth: three octaves, as in pixnerd_digits.py.
        head=dict(width=32, mlp_ratio=1, coordinates='sincos', num_frequencies=3, alignment='centers', normalize=norms),
    ),
    # A random Qwen3 that `make demo` writes; it can tell words and their order apart.
    conditioner=dict(
        model='work_dirs/t2i_digits/text_encoder', max_length=text_length, precomputed='work_dirs/t2i_digits/text'
    ),
    loss=dict(teacher=None, dim=192, projector_dim=192, timeshift=2.0, max_density=max_density),
    sampler=dict(guidance_scale=4.0, noise_limit=2.0),
)
train_dataloader = dict(dataset=dict(scale=max_density))
prompts = ['a red three', 'a cyan seven on black', 'four green sixes', 'a blue one above a yellow two']
custom_hooks = [
    dict(type='SampleGridHook', interval=400, conditions=dict(text=prompts * 2), size=image_size, columns=4)
]

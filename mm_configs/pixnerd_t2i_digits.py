# Text to image on coloured handwritten digits: 4.3 M parameters, minutes on two CPU cores (make demo).
_base_ = ['_base_/models/pixnerd_t2i.py', '_base_/datasets/captioned_digits.py', '_base_/schedules/small.py']
image_size = 32
max_iters = 1800
max_density = 2  # also train the field between base pixels
work_dir = 'work_dirs/t2i_digits'
text_length = 16  # digit_scenes.MAX_WORDS
# A token is a quarter of a large digit, or a small one: the parts of a digit agree sooner than in patches of 8. It
# stands where it does in pictures of other shapes, so that what is learned of single digits holds for pairs.
net = dict(dim=192, depth=4, num_heads=6, mlp_hidden=384, patch_size=16, position_rule='fixed_step')
caption = dict(text_dim=64, text_length=text_length, text_depth=1)
# Strokes are smooth: the finest of four octaves is as fine as in pixnerd_digits.py, whose patches are half as large.
coordinates = dict(coordinates='sincos', num_frequencies=4, alignment='centers')
head = dict(width=32, depth=2, mlp_ratio=1, normalize='fc1_fc2_output', **coordinates)
# A classifier of digits, colours and backgrounds that `make demo` trains first: tokens know sooner what to draw.
teacher = dict(_delete_=True, type='ClassifierTeacher', weights=f'{work_dir}/teacher.safetensors', patch_size=16)
alignment = dict(teacher=teacher, teacher_dim=96, align_layer=3, projector_dim=192)
# Times as JiT draws them for networks that predict the image: flat colours are simpler than the noise on them.
times = dict(timeshift=1.0, time_mean=-0.8, time_std=0.8)
model = dict(
    backbone=dict(prediction='image', head=head, **net, **caption),
    # A random Qwen3 that `make demo` writes; it can tell words and their order apart.
    conditioner=dict(model=f'{work_dir}/text_encoder', max_length=text_length, precomputed=f'{work_dir}/text'),
    loss=dict(dim=192, max_density=max_density, **alignment, **times),
    sampler=dict(guidance_scale=3.0, noise_limit=2.0),
)
train_cfg = dict(max_iters=max_iters)
# Three iterations of Muon do as well as five here, and a step is a tenth cheaper.
muon = dict(_delete_=True, type='MuonAdamW', lr=4e-3, ns_steps=3)
optim_wrapper = dict(constructor='MuonConstructor', optimizer=muon)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=False, begin=1200, end=max_iters),
]
train_dataloader = dict(batch_size=32, dataset=dict(num=60_000, scale=max_density))
prompts = ['a red three', 'a cyan seven on black', 'four green sixes', 'a blue one above a yellow two'] * 2
custom_hooks = [dict(type='SampleGridHook', interval=700, conditions=dict(text=prompts), size=image_size, columns=4)]

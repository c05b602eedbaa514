# PixNerd on scikit-learn's handwritten digits: 1.8 M parameters, minutes on two CPU cores (make demo-classes).
_base_ = [
    '_base_/models/pixnerd_c2i.py',
    '_base_/datasets/digits_held_out.py',
    '_base_/schedules/small.py',
]
image_size = 32
max_density = 4  # also train the field between base pixels, on pictures up to this many times larger
model = dict(
    backbone=dict(
        dim=128,
        depth=4,
        num_heads=4,
        patch_size=8,
        num_classes=10,
        # Strokes are smooth. Three octaves cannot draw the lattice that eight frequencies leave between pixels.
        head=dict(width=32, depth=2, mlp_ratio=1, coordinates='sincos', num_frequencies=3, alignment='centers'),
    ),
    conditioner=dict(num_classes=10, class_names=list('0123456789')),
    # Digits of 8x8 pixels enlarged to 32x32 are smooth, and only more noise hides them: the times are shifted towards
    # noise. They are also spread out, because a little noise left near t = 1 would show as speckle.
    loss=dict(teacher=None, dim=128, projector_dim=128, timeshift=2.0, time_std=1.5, max_density=max_density),
    sampler=dict(
        _delete_=True,
        type='AdamsFlowSampler',
        num_steps=30,
        guidance_scale=4.0,
        guidance_interval=(0.0, 0.6),
        timeshift=1.0,
        noise_limit=2.0,  # the field cannot take all of the rarest noise away, and would leave coloured dots
    ),
)
train_dataloader = dict(batch_size=64, dataset=dict(size=image_size * max_density))
val_dataloader = dict(dataset=dict(size=image_size * max_density))
train_cfg = dict(val_interval=200)
custom_hooks = [
    dict(type='SampleGridHook', interval=500, conditions=dict(label=list(range(10)) * 3), size=image_size, columns=10)
]

# Class to image, XL/16: 700,589,219 parameters. Leaves change width, depth and head.
model = dict(
    type='PixNerd',
    backbone=dict(
        type='PixNerdDiT',
        dim=1152,
        depth=26,
        num_heads=16,
        patch_size=16,
        num_classes=1000,
        head=dict(
            type='NeuralFieldHead',
            width=64,
            depth=4,
            mlp_ratio=2,
            coordinates='dct',
            num_frequencies=8,
            normalize='fc1_fc2_output',
        ),
    ),
    conditioner=dict(type='LabelConditioner', num_classes=1000),
    loss=dict(
        type='FlowMatchREPALoss',
        align_layer=8,
        repa_weight=0.5,
        cond_drop_prob=0.1,
        # A transformers folder of DINOv2-B, or its hub id if it is in the local cache.
        teacher=dict(type='DINOv2Teacher', model='{{$PIXNERD_DINOV2:facebook/dinov2-base}}'),
        dim=1152,
        projector_dim=1152,
        teacher_dim=768,
    ),
    # Published: FID 2.15 at ImageNet 256 (paper Table 2, Euler-100).
    sampler=dict(
        type='EulerFlowSampler', num_steps=100, guidance_scale=3.5, guidance_interval=(0.1, 1.0), timeshift=1.0
    ),
)

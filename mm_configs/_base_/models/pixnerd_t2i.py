# Text to image, XXL/16: 1,171,518,019 parameters, plus a frozen Qwen3-1.7B.
model = dict(
    type='PixNerd',
    backbone=dict(
        type='PixNerdDiT',
        dim=1536,
        depth=16,
        num_heads=24,
        patch_size=16,
        text_dim=2048,
        text_length=128,
        text_depth=4,
        head=dict(
            type='NeuralFieldHead',
            width=64,
            depth=2,
            mlp_ratio=2,
            coordinates='cosine',
            num_frequencies=8,
            normalize='fc1',
        ),
    ),
    # A transformers folder of Qwen3-1.7B, or its hub id if it is in the local cache.
    conditioner=dict(type='Qwen3TextEncoder', model='{{$PIXNERD_QWEN3:Qwen/Qwen3-1.7B}}', max_length=128),
    loss=dict(
        type='FlowMatchREPALoss',
        align_layer=6,
        repa_weight=0.5,
        timeshift=2.0,
        cond_drop_prob=0.1,
        teacher=dict(type='DINOv2Teacher', model='{{$PIXNERD_DINOV2:facebook/dinov2-base}}'),
        dim=1536,
        projector_dim=1536,
        teacher_dim=768,
    ),
    sampler=dict(
        type='AdamsFlowSampler',
        num_steps=25,
        order=2,
        guidance_scale=4.0,
        guidance_interval=(0.0, 1.0),
        timeshift=3.0,
    ),
)

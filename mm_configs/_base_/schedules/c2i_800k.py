# ImageNet at 256 and 512 (paper Sec. 4): batch 256 = 8 GPUs x 32, constant learning rate, no warm-up.
train_cfg = dict(type='ResumableTrainLoop', max_iters=800_000)
optim_wrapper = dict(
    type='Bf16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True),
)
auto_scale_lr = dict(enable=False, base_batch_size=8 * 32)

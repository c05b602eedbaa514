# Text to image at 256: batch 1536 = 16 GPUs x 96. The release keeps weights and optimiser in bf16, which is too coarse
# for an EMA of 0.9999 and small learning rates; here they are float32, under autocast.
train_cfg = dict(type='ResumableTrainLoop', max_iters=200_000)
optim_wrapper = dict(
    type='Bf16OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=16 * 96)

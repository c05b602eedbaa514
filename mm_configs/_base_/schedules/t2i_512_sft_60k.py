# Supervised fine-tuning at 512: 24 per GPU.
_base_ = './t2i_512_80k.py'
train_cfg = dict(max_iters=60_000)
optim_wrapper = dict(optimizer=dict(lr=1e-5, betas=(0.9, 0.999)))
auto_scale_lr = dict(base_batch_size=16 * 24)

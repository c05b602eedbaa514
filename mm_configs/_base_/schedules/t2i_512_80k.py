# Text to image at 512, from the weights at 256: batch 512 in the paper (in the release 24 per GPU, 400k steps).
_base_ = './t2i_200k.py'
train_cfg = dict(max_iters=80_000)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
auto_scale_lr = dict(base_batch_size=512)

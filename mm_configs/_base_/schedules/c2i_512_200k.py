# Fine-tuning at 512 from the weights at 256.
_base_ = './c2i_800k.py'
train_cfg = dict(max_iters=200_000)

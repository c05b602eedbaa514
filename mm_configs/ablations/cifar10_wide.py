# cifar10_small.py with tokens as wide as a patch of 8 has values (3 x 8 x 8), so that the linear head is no bottleneck.
_base_ = './cifar10_small.py'
model = dict(
    backbone=dict(dim=192, num_heads=6),
    loss=dict(dim=192, projector_dim=192),
)

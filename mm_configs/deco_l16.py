# DeCo-L/16 on ImageNet 256: 426,938,019 parameters.
_base_ = './deco_xl16.py'
model = dict(
    backbone=dict(dim=1024, depth=22),
    loss=dict(dim=1024, projector_dim=1024),
)

# PixNerd-L/16 on ImageNet 256: 452,113,795 parameters.
_base_ = './pixnerd_xl16.py'
model = dict(
    backbone=dict(dim=1024, depth=22, head=dict(depth=2)),
    loss=dict(dim=1024, projector_dim=1024),
)

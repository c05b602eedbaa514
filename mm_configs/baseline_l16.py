# Baseline-L/16, which the paper compares with PixNerd-L/16: 24 blocks, and a linear head in place of the field.
_base_ = './pixnerd_xl16.py'
model = dict(
    backbone=dict(dim=1024, depth=24, head=dict(_delete_=True, type='LinearHead')),
    loss=dict(dim=1024, projector_dim=1024),
)
